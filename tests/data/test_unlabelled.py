"""Folders of images without labels."""

import numpy as np
import pytest
from PIL import Image

from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS
from tetravit.data.loader import make_train_loader


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(path, "PNG")


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(
        ("b.png", "a/deep/1.PNG", "a/2.png", "@eaDir/b.png", ".hidden/c.png", "x.jpg/3.png")
    ):
        picture(tmp_path / name, i)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    return tmp_path


def test_all_images_at_any_depth(folder):
    dataset = DATASETS["unlabelled"](str(folder), "train")
    assert [dataset[i].name.removeprefix(f"{folder}/") for i in range(len(dataset))] == [
        "a/2.png",
        "a/deep/1.PNG",
        "b.png",
        "x.jpg/3.png",
    ]
    assert dataset[0].target is None
    info = dataset.info
    assert (info.kind, info.num_classes, info.class_names) == ("unlabelled", 0, ())
    assert info.problems == (
        f"1 files left out: .heic cannot be read; convert them to .jpg or .png; the first: {folder}/IMG_1.HEIC",
        f"1 files left out: .txt, not an image; the first: {folder}/notes.txt",
    )


def test_a_part_is_a_folder_where_there_is_one(folder):
    with pytest.raises(ValueError) as error:
        DATASETS["unlabelled"](folder, "val")
    assert str(error.value) == (
        f"There is no folder 'val' in {str(folder)!r}, which has 'a', 'x.jpg'; the layout is ROOT/train/IMAGE and"
        " ROOT/val/IMAGE, or ROOT/IMAGE to train on. Name it with data.val=FOLDER, or divide the images with"
        " data.split=0.1."
    )
    picture(folder / "train" / "1.png")
    assert len(DATASETS["unlabelled"](folder, "train")) == 1


def test_batches_have_no_targets(folder):
    config = DataConfig(name="unlabelled", root=folder, image_size=8, batch_size=2, workers=0)
    (batch,) = next(make_train_loader(config, seed=0, views=["crop", "crop(6)"]).batches())
    assert batch.targets is None
    assert [tuple(x.images.shape) for x in (batch, *batch.views)] == [(2, 3, 8, 8), (2, 3, 6, 6)]


def test_an_empty_folder_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(ValueError) as error:
        DATASETS["unlabelled"](tmp_path, "train")
    assert str(error.value) == (
        f"There are no images in {str(tmp_path)!r}: 1 files left out: .heic cannot be read; convert them to .jpg or"
        f" .png; the first: {tmp_path}/a.heic."
    )
