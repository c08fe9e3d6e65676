"""A new data set, storage and augmentation: one file each, used from Python and a recipe."""

import pytest
from tests.dropped import package_with, python

pytestmark = pytest.mark.slow  # whole runs and other processes

STORAGE = '''
"""Images that are drawn when they are read, under shelf://."""
import io

from PIL import Image

from tetravit.data.storage.base import Entry, Stat, Storage

TREE = {"": ["train", "val"], "train": ["a", "b"], "val": ["a", "b"], "*": ["1.png", "2.png"]}


class Shelf(Storage):
    """Two images of two classes in two parts."""

    def _parts(self, path):
        return [part for part in path.removeprefix("shelf://").split("/") if part]

    def list(self, folder):
        parts = self._parts(folder)
        names = TREE["*"] if len(parts) == 3 else TREE[parts[1] if len(parts) == 2 else ""]
        return [Entry(name, len(parts) < 3) for name in names]

    def open(self, file):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40), (200 if "/a/" in file else 20, 0, 0)).save(buffer, "PNG")
        buffer.seek(0)
        return buffer

    def stat(self, path):
        if "valid" in path or not path.startswith("shelf://box"):
            raise FileNotFoundError(path)
        return Stat(0, 0.0, not path.endswith(".png"))


STORAGE = {"shelf": Shelf}
'''

DATASET = '''
"""Squares of one gray value each."""
import torch

from tetravit.data.datasets.base import Dataset, check_split, no_root
from tetravit.structures import Sample


class Grays(Dataset):
    """Dark and light squares, uint8 (3, 40, 40)."""

    in_memory = True
    num_classes, class_names = 2, ("dark", "light")

    def __init__(self, root, split, *, count: int = 8):
        check_split(split)
        no_root("grays", root)
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Sample(torch.full((3, 40, 40), 200 * (index % 2), dtype=torch.uint8), index % 2, f"grays/{index}")


DATASETS = {"grays": Grays}
'''

TRANSFORM = '''
"""Values inverted."""
from tetravit.data.transforms.base import ImageTransform


class Negative(ImageTransform):
    """uint8 -> 255 less it."""

    def transform(self, inpt, params):
        return 255 - inpt


TRANSFORMS = {"negative": Negative}
'''

USE = """
from tetravit.data.augment import parse
from tetravit.data.config import DataConfig
from tetravit.data.loader import make_train_loader

for keys in ({"name": "grays"}, {"name": "image_folder", "root": "shelf://box"}):
    config = DataConfig(**keys, batch_size=4, image_size=32, workers=0, augment="resize | negative")
    (batch,) = next(make_train_loader(config, seed=0).batches())
    print(config.root, tuple(batch.images.shape), sorted(batch.targets.tolist()) in ([0, 0, 1, 1], [0, 1, 1, 1]))
"""


def test_one_file_each(tmp_path):
    files = {
        "data/storage/shelf.py": STORAGE,
        "data/datasets/grays.py": DATASET,
        "data/transforms/negative.py": TRANSFORM,
    }
    (tmp_path / "package").mkdir()
    package = package_with(tmp_path / "package", files)
    lines = python(package, "-c", USE).splitlines()
    assert lines[0].startswith("None (4, 3, 32, 32)")
    assert lines[1] == "shelf://box (4, 3, 32, 32) True"
    run = "train finetune model.name=xcit_nano_12_p16 model.options={depth=1} data.image_size=32 data.batch_size=4"
    run += " data.workers=0 epochs=1 --dry-run"
    for keys in ("data.name=grays", "data.root=shelf://box"):
        out = python(
            package, "-m", "tetravit", *run.split(), keys, "data.augment=resize | negative", cwd=tmp_path
        )
        assert "Traceback" not in out
