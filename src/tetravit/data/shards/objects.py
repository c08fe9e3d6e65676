"""COCO JSON of shards -> an object table with rows in the order of the index."""

from collections.abc import Sequence

from tetravit.data.coco_layout import Source
from tetravit.data.datasets.coco import Reader
from tetravit.data.lookup import Lookup
from tetravit.data.object_table import ObjectTable
from tetravit.data.objects import Masks
from tetravit.data.upright import Orientation


class _Names(Lookup):
    """Every file exists: the index lists it."""

    def __init__(self, source: Source) -> None:
        self.folder = source.images

    def find(self, name: str) -> str | None:
        return name


class _Reader(Reader):
    def _lookup(self, source: Source) -> Lookup:
        return _Names(source)


def read_objects(
    source: Source, class_names: Sequence[str], masks: Masks, orientation: Orientation | None
) -> tuple[ObjectTable, list[str]]:
    """The objects of all images in index order, and their class names."""
    reader = _Reader(source.images, class_names, masks, orientation=orientation)
    reader.read(source)
    return reader.close()
