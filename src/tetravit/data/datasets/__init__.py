"""Data sets by name, one per file. How to add one: ARCHITECTURE.md, "Where do I add ...?"."""

from tetravit.data.datasets.base import Dataset, kind_of
from tetravit.registry import discover

DATASETS = discover(__name__, "DATASETS")  # {"digits": Digits, "image_folder": ImageFolder, ...}

__all__ = ["DATASETS", "Dataset", "kind_of"]
