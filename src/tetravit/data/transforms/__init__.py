"""Augmentations by name, one per file. How to add one: ARCHITECTURE.md, "Where do I add ...?"."""

from tetravit.data.transforms.base import Transform
from tetravit.registry import discover

TRANSFORMS = discover(__name__, "TRANSFORMS")  # {"crop": RandomResizedCrop, "flip": Flip, ...}

__all__ = ["TRANSFORMS", "Transform"]
