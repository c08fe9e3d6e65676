"""Data sets by name, one per file. To add one: see CONTRIBUTING.md, "A data set"."""

from tetravit.data.datasets.base import Dataset, kind_of
from tetravit.registry import discover

DATASETS = discover(__name__, "DATASETS")  # {"digits": Digits, "image_folder": ImageFolder, ...}

__all__ = ["DATASETS", "Dataset", "kind_of"]
