"""Oxford 102 Flowers (Nilsback and Zisserman 2008), read by torchvision from the authors' files.

ROOT/flowers-102 contains `jpg`, `imagelabels.mat` and `setid.mat`. As in published transfer results, the authors'
training and validation images together are "train" (2,040), the test images "val" (6,149).
"""

import numpy as np

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, local_root
from tetravit.data.decode import decode
from tetravit.structures import Sample

PARTS = {"train": ("train", "val"), "val": ("test",)}


class Flowers(Dataset):
    """Images of 102 kinds of flowers.

    Args:
        root: the folder that contains `flowers-102`.
        split: "train" or "val".

    Raises:
        ValueError: if the files are missing or damaged, or scipy (needed to read them) is not installed.
    """

    num_classes = 102
    needs_root = True

    def __init__(self, root: Root, split: Split) -> None:
        from torchvision.datasets import Flowers102  # slow import

        check_split(split)
        root = local_root("flowers", root)
        try:
            parts = [Flowers102(root, split=part, download=False) for part in PARTS[split]]
        except ImportError:
            raise ValueError(
                "The data set 'flowers' needs the extra: pip install 'tetravit[scipy]'."
            ) from None
        except RuntimeError:
            raise ValueError(f"{str(root)!r} does not hold 'flowers-102' as published.") from None
        self.files = [str(file) for part in parts for file in part._image_files]
        self.labels: np.ndarray = np.array([label for part in parts for label in part._labels])
        self.class_names = tuple(f"flower {i + 1}" for i in range(self.num_classes))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            decode(self.files[index], layout="decoded", channels=self.channels),
            int(self.labels[index]),
            self.files[index],
        )


DATASETS = {"flowers": Flowers}
