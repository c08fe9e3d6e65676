"""COCO's 80 classes and their category ids, which have gaps."""

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
    """Names of COCO's classes, in the order of the logits."""
    return tuple(Path(__file__).with_suffix(".txt").read_text(encoding="ascii").splitlines())


def raw_names() -> tuple[str, ...]:
    """Names by category id, 0 to 90, as in DETR's weights; `unused N` for ids without a class."""
    names = iter(class_names())
    return tuple(f"unused {i}" if i == 0 or i in GAPS else next(names) for i in range(91))


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """Category ids for output files: COCO's ids for COCO's classes, else 1, 2, 3, ..."""
    if tuple(names) == class_names():
        return tuple(number for number in range(1, 91) if number not in GAPS)
    if tuple(names) == raw_names():
        return tuple(range(91))
    return tuple(range(1, len(names) + 1))
