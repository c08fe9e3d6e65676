"""CIFAR, Flowers, Cars and iNaturalist in tiny imitations of the published files."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as published

from tetravit.data.datasets import DATASETS


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6, 3), value, dtype=np.uint8)).save(path)


def shown(sample):
    image = sample.image
    return image if isinstance(image, torch.Tensor) else torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Ten images a batch, of the right layout; their checksums are not the published ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    pixels = np.arange(10 * 3072).reshape(10, 3072).astype(np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": list(range(90, 100))}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"f{i}" for i in range(100)]}))
    return tmp_path, pixels


def test_cifar(cifar):
    root, pixels = cifar
    train, val = (DATASETS["cifar10"](root, split) for split in ("train", "val"))
    assert (len(train), len(val), train.num_classes, train.class_names[3]) == (50, 10, 10, "c3")
    assert torch.equal(train[12].image, torch.from_numpy(pixels[2]).view(3, 32, 32))
    assert (train[12].target, train[12].name) == (2, "cifar10/train/12")
    hundred = DATASETS["cifar100"](root, "val")
    assert (hundred.num_classes, hundred[9].target, hundred.class_names[99]) == (100, 99, "f99")


def test_a_fraction_of_cifar_trains(cifar):
    train = DATASETS["cifar10"](cifar[0], "train", fraction=0.2)
    assert len(train) == 10
    assert len(DATASETS["cifar10"](cifar[0], "val", fraction=0.2)) == 10


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    io = pytest.importorskip("scipy.io")
    monkeypatch.setattr(published.Flowers102, "_check_integrity", lambda self: True)
    folder = tmp_path / "flowers-102"
    for i in range(1, 7):
        picture(folder / "jpg" / f"image_{i:05d}.jpg", 20 * i)
    io.savemat(folder / "imagelabels.mat", {"labels": np.array([[102, 1, 2, 1, 2, 3]])})
    io.savemat(
        folder / "setid.mat",
        {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[5, 6]])},
    )
    return tmp_path


def test_flowers_train_on_both_parts(flowers):
    train, val = (DATASETS["flowers"](flowers, split) for split in ("train", "val"))
    assert (len(train), len(val), train.num_classes) == (4, 2, 102)
    assert [train[i].target for i in range(4)] == [101, 0, 1, 0]
    assert [val[i].target for i in range(2)] == [1, 2]
    assert abs(int(shown(val[1]).float().mean()) - 120) <= 2


@pytest.fixture
def cars(tmp_path):
    io = pytest.importorskip("scipy.io")
    folder = tmp_path / "stanford_cars"
    fields = [("fname", object), ("class", np.uint8)]
    for part, labels in (("train", (1, 3)), ("test", (2, 1))):
        for i in range(2):
            picture(folder / f"cars_{part}" / f"0000{i}.jpg", 100)
        rows = np.array([(f"0000{i}.jpg", label) for i, label in enumerate(labels)], dtype=fields)
        (folder / "devkit").mkdir(exist_ok=True)
        name = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        io.savemat(folder / name, {"annotations": rows})
    io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["a", "b", "c"], dtype=object)})
    return tmp_path


def test_cars(cars):
    train, val = (DATASETS["cars"](cars, split) for split in ("train", "val"))
    assert ([s.target for s in (train[0], train[1])], [s.target for s in (val[0], val[1])]) == (
        [0, 2],
        [1, 0],
    )
    assert (train.num_classes, train.class_names) == (3, ("a", "b", "c"))
    assert shown(train[0]).shape == (3, 8, 6)


@pytest.fixture
def inat(tmp_path):
    def write(name, rows):
        table = {
            "images": [{"id": i, "file_name": f"train_val2019/{i}.jpg"} for i, _ in rows],
            "annotations": [{"image_id": i, "category_id": c} for i, c in rows],
            "categories": [{"id": c, "name": f"species {c}"} for c in (4, 9)],
        }
        (tmp_path / name).write_text(json.dumps(table))
        for i, c in rows:
            picture(tmp_path / "train_val2019" / f"{i}.jpg", c)

    write("train2019.json", [(1, 9), (2, 4), (3, 9), (4, 4)])
    write("val2019.json", [(7, 9)])
    return tmp_path


def test_inat(inat):
    train, val = (DATASETS["inat19"](inat, split) for split in ("train", "val"))
    assert (len(train), len(val), train.class_names) == (4, 1, ("species 4", "species 9"))
    assert [train[i].target for i in range(4)] == [1, 0, 1, 0]
    assert val[0].target == 1
    assert val[0].name == str(inat / "train_val2019" / "7.jpg")
    assert len(DATASETS["inat19"](inat, "train", fraction=0.5)) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar10",
            "'ROOT' does not hold 'cifar-10-batches-py' as published; unpack the archive there.",
        ),
        ("cifar100", "'ROOT' does not hold 'cifar-100-python' as published; unpack the archive there."),
        ("flowers", "'ROOT' does not hold 'flowers-102' as published."),
        ("cars", "'ROOT' does not hold 'stanford_cars' as published."),
        ("inat18", "There is no 'train2018.json' in 'ROOT'."),
        ("inat19", "There is no 'train2019.json' in 'ROOT'."),
    ],
)
def test_what_is_not_there_is_named(name, message, tmp_path):
    with pytest.raises(ValueError) as error:
        DATASETS[name](tmp_path, "train")
    assert str(error.value) == message.replace("ROOT", str(tmp_path))
    with pytest.raises(ValueError) as error:
        DATASETS[name](None, "train")
    assert str(error.value) == f"The data set {name!r} needs its root."


@pytest.mark.parametrize("name", ["flowers", "cars"])
def test_without_scipy_its_extra_is_named(name, request, monkeypatch):
    root = request.getfixturevalue(name)
    for module in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as error:
        DATASETS[name](root, "train")
    assert str(error.value) == f"The data set {name!r} needs the extra: pip install 'tetravit[scipy]'."


def test_annotations_that_do_not_read(inat):
    (inat / "val2019.json").write_text("{}")
    with pytest.raises(ValueError) as error:
        DATASETS["inat19"](inat, "val")
    assert str(error.value) == (
        f"{str(inat / 'val2019.json')!r} is not an annotation file with images and annotations."
    )
    row = {"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 1, "category_id": 77}]}
    (inat / "val2019.json").write_text(json.dumps(row))
    with pytest.raises(ValueError) as error:
        DATASETS["inat19"](inat, "val")
    assert str(error.value) == f"{str(inat)!r}: val2019.json names 77, which the file does not list."
