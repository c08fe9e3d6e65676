"""Stanford Cars (Krause et al. 2013), read by torchvision from the authors' files.

ROOT/stanford_cars contains `cars_train`, `cars_test`, `devkit` and `cars_test_annos_withlabels.mat`. The 8,144
training images are "train", the 8,041 test images "val".
"""

import numpy as np

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, local_root
from tetravit.data.decode import decode
from tetravit.structures import Sample

PARTS = {"train": "train", "val": "test"}


class Cars(Dataset):
    """Images of 196 makes of cars.

    Args:
        root: the folder that contains `stanford_cars`.
        split: "train" or "val".

    Raises:
        ValueError: if files are missing, or scipy (needed to read the labels) is not installed.
    """

    needs_root = True

    def __init__(self, root: Root, split: Split) -> None:
        from torchvision.datasets import StanfordCars  # loads slowly

        check_split(split)
        root = local_root("cars", root)
        try:
            cars = StanfordCars(root, split=PARTS[split], download=False)
        except RuntimeError as error:
            if "scipy" in str(error).lower():
                raise ValueError(
                    "The data set 'cars' needs the extra: pip install 'tetravit[scipy]'."
                ) from None
            raise ValueError(f"{str(root)!r} does not hold 'stanford_cars' as published.") from None
        self.files = [str(file) for file, _ in cars._samples]
        self.labels: np.ndarray = np.array([label for _, label in cars._samples])
        self.class_names = tuple(str(name) for name in cars.classes)
        self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            decode(self.files[index], layout="decoded", channels=self.channels),
            int(self.labels[index]),
            self.files[index],
        )


DATASETS = {"cars": Cars}
