"""COCO: the 80 classes that detectors know, in the order of their numbers (91 of them, with gaps)."""

from pathlib import Path


def class_names() -> tuple[str, ...]:
    """What COCO calls its classes, in the order of the logits."""
    return tuple(Path(__file__).with_suffix(".txt").read_text(encoding="ascii").splitlines())
