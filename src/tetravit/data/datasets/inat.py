"""iNaturalist 2018 and 2019 (Van Horn et al. 2018): 8,142 and 1,010 species, as the competitions published them.

ROOT contains `train2018.json`, `val2018.json` and `train_val2018/...`, or the same for 2019. torchvision ignores the
competition's split; here it is read from the annotation files.
"""

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tetravit.data.datasets.base import Dataset, Root, Split, check_split, keep_fraction, local_root
from tetravit.data.decode import decode
from tetravit.structures import Sample


class INaturalist(Dataset):
    """Images of species; classes in the order of the category ids of the training annotations.

    Args:
        root: the folder that contains the annotations and the images.
        split: "train" or "val".
        fraction: keep the first share of each class, in (0, 1]; the validation part is always whole.

    Raises:
        ValueError: if annotations are missing or unreadable, or train and val have different species.
    """

    year: ClassVar[int]
    needs_root = True

    def __init__(self, root: Root, split: Split, *, fraction: float = 1.0) -> None:
        check_split(split)
        year = self.year
        self.root = local_root(f"inat{year % 100}", root)
        table = _read(self.root / f"train{year}.json")
        species = sorted({a["category_id"] for a in table["annotations"]})
        numbers = {number: i for i, number in enumerate(species)}
        names = {c["id"]: c.get("name", str(c["id"])) for c in table.get("categories", [])}
        self.class_names = tuple(str(names.get(number, number)) for number in species)
        self.num_classes = len(species)
        if split == "val":
            table = _read(self.root / f"val{year}.json")
        files = {image["id"]: image["file_name"] for image in table["images"]}
        try:
            pairs = [(files[a["image_id"]], numbers[a["category_id"]]) for a in table["annotations"]]
        except KeyError as error:
            raise ValueError(
                f"{str(self.root)!r}: {split}{year}.json names {error}, which the file does not list."
            ) from None
        labels = np.array([label for _, label in pairs], dtype=np.int64)
        kept = keep_fraction(labels, fraction if split == "train" else 1.0)
        self.files = [pairs[i][0] for i in kept]
        self.labels: np.ndarray = labels[kept]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = os.path.join(self.root, self.files[index])
        return Sample(decode(path, layout="decoded", channels=self.channels), int(self.labels[index]), path)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        table: dict[str, list[dict[str, Any]]] = json.loads(path.read_bytes())
        complete = isinstance(table["images"], list) and isinstance(table["annotations"], list)
    except FileNotFoundError:
        raise ValueError(f"There is no {path.name!r} in {str(path.parent)!r}.") from None
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{str(path)!r} is not an annotation file with images and annotations.")
    return table


class INaturalist2018(INaturalist):
    """iNaturalist 2018."""

    year = 2018


class INaturalist2019(INaturalist):
    """iNaturalist 2019."""

    year = 2019


DATASETS = {"inat18": INaturalist2018, "inat19": INaturalist2019}
