"""COCO's 80 classes, and their ids in COCO's files, which have gaps."""

from collections.abc import Sequence
from pathlib import Path

GAPS = (
    12,
    26,
    29,
    30,
    45,
    66,
    68,
    69,
    71,
    83,
)  # of 1 to 90: ids without annotations


def class_names() -> tuple[str, ...]:
    """The names of COCO's classes, in the order of the logits."""
    return tuple(Path(__file__).with_suffix(".txt").read_text(encoding="ascii").splitlines())


def raw_names() -> tuple[str, ...]:
    """Names by the numbers of COCO's files, 0 to 90, as DETR's weights count; `unused N` where there is no class."""
    names = iter(class_names())
    return tuple(f"unused {i}" if i == 0 or i in GAPS else next(names) for i in range(91))


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """The numbers of classes in COCO's files: its own for its classes, else 1, 2, 3, ..."""
    if tuple(names) == class_names():
        return tuple(number for number in range(1, 91) if number not in GAPS)
    if tuple(names) == raw_names():
        return tuple(range(91))
    return tuple(range(1, len(names) + 1))
