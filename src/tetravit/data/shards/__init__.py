"""Tar shards in the layout of WebDataset, with an index of our own for random access.

DIR/train-000000.tar, ...     KEY.jpg, and KEY.cls, KEY.json or KEY.seg.png with the same key
DIR/train.index 24 bytes per image: shard, size, offset, label, crc32; mapped into memory
DIR/train.targets the same for label maps
DIR/train.json objects: COCO JSON
DIR/shards.json kind, classes, splits, and size and SHA-256 of each shard; written last
"""

from tetravit.data.shards.index import META, ROW, Meta, find_meta

__all__ = ["META", "ROW", "Meta", "find_meta"]
