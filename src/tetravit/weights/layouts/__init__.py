"""How published detectors and segmenters name their tensors; one head per file."""

from collections.abc import Mapping

from tetravit import weights
from tetravit.registry import discover, pick
from tetravit.weights.base import KeyMap
from tetravit.weights.layouts.base import DenseMap

# {"mask_rcnn": {"mmdet": ...}, ...}: of each head the layouts, by the program that names tensors so.
KEY_MAPS: Mapping[str, Mapping[str, KeyMap]] = discover(__name__, "KEY_MAPS")


def dense_maps(family: str, head: str) -> dict[str, DenseMap]:
    """The layouts of a model of `family` with a menu `head`, by name; none where nobody published such models."""
    if family not in weights.ADAPTERS:
        return {}
    backbone, adapter = weights.LAYOUTS[family]["official"], weights.ADAPTERS[family]
    return {name: DenseMap(backbone, adapter, keys) for name, keys in KEY_MAPS.get(head, {}).items()}


def dense_map(family: str, head: str) -> DenseMap:
    """The first layout of a model of `family` with a menu `head`.

    Raises:
        ValueError: if nobody published that head, or dense models of that family.
    """
    pick(KEY_MAPS, head, "head with published weights")
    pick(weights.ADAPTERS, family, "family with published dense models")
    return next(iter(dense_maps(family, head).values()))


__all__ = ["KEY_MAPS", "DenseMap", "dense_map", "dense_maps"]
