"""Tiny imitations of the published files of every data set that a recipe names: eight images to train on."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TRAIN, VAL = 8, 4


@pytest.fixture
def lay_out(monkeypatch) -> Callable[[str, Path], int]:
    """Lays out the data set of a name below a folder; gives its number of classes."""
    rows = {"cifar10": _cifar10, "cifar100": _cifar100, "flowers": _flowers, "cars": _cars}
    rows |= {"imagenet": _folder, "image_folder": _folder, "inat18": _inat, "inat19": _inat}
    return lambda name, root: rows[name](root, monkeypatch)


def _picture(path: Path, i: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 10, 3), 20 * i, dtype=np.uint8)).save(path)


def _folder(root: Path, monkeypatch) -> int:
    for split, count in (("train", TRAIN), ("val", VAL)):
        for i in range(count):
            _picture(root / split / f"class_{i % 4}" / f"{i}.png", i)
    return 4


def _batch(count: int, labels: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, labels: list(range(count))})


def _cifar10(root: Path, monkeypatch) -> int:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(5):
        (folder / f"data_batch_{i + 1}").write_bytes(_batch(2, "labels"))
    (folder / "test_batch").write_bytes(_batch(VAL, "labels"))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    return 10


def _cifar100(root: Path, monkeypatch) -> int:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    folder = root / "cifar-100-python"
    folder.mkdir()
    for split, count in (("train", TRAIN), ("test", VAL)):
        (folder / split).write_bytes(_batch(count, "fine_labels"))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    return 100


def _flowers(root: Path, monkeypatch) -> int:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    folder, total = root / "flowers-102", TRAIN + VAL
    for i in range(1, total + 1):
        _picture(folder / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, total + 1)[None]})
    parts = {
        "trnid": np.arange(1, 5),
        "valid": np.arange(5, TRAIN + 1),
        "tstid": np.arange(TRAIN + 1, total + 1),
    }
    savemat(folder / "setid.mat", {name: numbers[None] for name, numbers in parts.items()})
    return 102


def _cars(root: Path, monkeypatch) -> int:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for part, count, name in (
        ("train", TRAIN, "devkit/cars_train_annos.mat"),
        ("test", VAL, "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{i}.jpg", i % 4 + 1) for i in range(count)]
        for file, label in rows:
            _picture(folder / f"cars_{part}" / file, label)
        fields = [("fname", object), ("class", np.uint8)]
        savemat(folder / name, {"annotations": np.array(rows, dtype=fields)})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(list("abcd"), dtype=object)})
    return 4


def _inat(root: Path, monkeypatch) -> int:
    for year in (2018, 2019):
        for split, numbers in (("train", range(TRAIN)), ("val", range(TRAIN, TRAIN + VAL))):
            files = {i: f"train_val{year}/{i}.jpg" for i in numbers}
            for i, file in files.items():
                _picture(root / file, i)
            table = {
                "images": [{"id": i, "file_name": file} for i, file in files.items()],
                "annotations": [{"image_id": i, "category_id": i % 4} for i in numbers],
            }
            (root / f"{split}{year}.json").write_text(json.dumps(table))
    return 4
