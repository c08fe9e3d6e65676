"""ImageNet-1k: its 1000 classes, by WordNet number and by name."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet numbers of the classes ("n01440764", ...), in the order of the logits."""
    return tuple(Path(__file__).with_suffix(".txt").read_text(encoding="ascii").split())


@cache
def class_names() -> tuple[str, ...]:
    """The English names of the classes, all different, in the order of the logits."""
    from torchvision.models import ResNet50_Weights  # loads slowly, and only names need it

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def readable(names: Iterable[str]) -> tuple[str, ...]:
    """Class names, with WordNet numbers of ImageNet replaced by English names."""
    names = tuple(names)
    if not any(name in wordnet_ids() for name in names[:1]):
        return names
    called = dict(zip(wordnet_ids(), class_names(), strict=True))
    return tuple(called.get(name, name) for name in names)
