"""Augmentations by name, one per file."""
