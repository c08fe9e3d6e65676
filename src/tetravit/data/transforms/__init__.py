"""Augmentations by name, one per file. To add one: see CONTRIBUTING.md, "An augmentation"."""

from tetravit.data.transforms.base import Transform
from tetravit.registry import discover

TRANSFORMS = discover(__name__, "TRANSFORMS")  # {"crop": RandomResizedCrop, "flip": Flip, ...}

__all__ = ["TRANSFORMS", "Transform"]
