"""Tensor names of published detectors and segmenters; one head per file."""

from collections.abc import Mapping

from tetravit import weights
from tetravit.registry import discover, pick
from tetravit.weights.base import KeyMap
from tetravit.weights.layouts.base import DenseMap

# {"mask_rcnn": {"mmdet": ...}, ...}: per head, the layouts by the program that defines them.
KEY_MAPS: Mapping[str, Mapping[str, KeyMap]] = discover(__name__, "KEY_MAPS")


def dense_maps(family: str, head: str) -> dict[str, DenseMap]:
    """The layouts of a model of `family` with a menu `head`, by name; empty if no such models are published."""
    if family not in weights.ADAPTERS:
        return {}
    backbone, adapter = weights.LAYOUTS[family]["official"], weights.ADAPTERS[family]
    return {name: DenseMap(backbone, adapter, keys) for name, keys in KEY_MAPS.get(head, {}).items()}


def dense_map(family: str, head: str) -> DenseMap:
    """The first layout of a model of `family` with a menu `head`.

    Raises:
        ValueError: if that head, or dense models of that family, are not published.
    """
    pick(KEY_MAPS, head, "head with published weights")
    pick(weights.ADAPTERS, family, "family with published dense models")
    return next(iter(dense_maps(family, head).values()))


__all__ = ["KEY_MAPS", "DenseMap", "dense_map", "dense_maps"]
