"""ImageNet-1k: its 1000 classes, as WordNet ids and names."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def wordnet_ids() -> tuple[str, ...]:
    """WordNet ids of the classes ("n01440764", ...), in the order of the logits."""
    return tuple(Path(__file__).with_suffix(".txt").read_text(encoding="ascii").split())


@cache
def class_names() -> tuple[str, ...]:
    """English names of the classes, unique, in the order of the logits."""
    from torchvision.models import ResNet50_Weights  # slow import, needed for names only

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def readable(names: Iterable[str]) -> tuple[str, ...]:
    """Class names, with ImageNet's WordNet ids replaced by English names."""
    names = tuple(names)
    if not any(name in wordnet_ids() for name in names[:1]):
        return names
    called = dict(zip(wordnet_ids(), class_names(), strict=True))
    return tuple(called.get(name, name) for name in names)
