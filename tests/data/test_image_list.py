"""Tables of images and classes, one class per image or several."""

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.build import build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS
from tetravit.data.evaluation import make_eval_loader
from tetravit.data.loader import make_train_loader

FILES = ("a/1.png", "a/2.png", "b/3.png", "b c/4.JPG")


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(FILES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name, "PNG")
    return tmp_path


def build(root, text, ending="csv", part="train", val="", encoding="utf-8", **options):
    (root / f"train.{ending}").write_text(text, encoding=encoding)
    if val:
        (root / f"val.{ending}").write_text(val, encoding=encoding)
    return build_dataset(DataConfig(name="image_list", root=root, batch_size=1, options=options), part)


def content(dataset):
    return [(dataset.key(i).removeprefix("photos/"), dataset[i].target) for i in range(len(dataset))]


PLAIN = [("a/1.png", 0), ("a/2.png", 1), ("b/3.png", 1)]


@pytest.mark.parametrize(
    ("ending", "text", "encoding"),
    [
        ("csv", "image,label\na/1.png,cat\na/2.png,dog\nb/3.png,dog\n", "utf-8"),
        ("csv", "image,label\r\na/1.png,cat\r\na/2.png,dog\r\nb/3.png,dog\r\n", "utf-8-sig"),
        ("csv", "image,label\na/1.png,cat\na/2.png,dog\nb/3.png,dog\n", "utf-16"),
        ("csv", "Class;File Name\ncat; a/1.png\ndog;a\\2.png\ndog;.\\b\\3.png\n", "utf-8"),
        ("csv", 'path,x,category\n"/home/ann/photos/a/1.png",0,cat\na/2.PNG,1, dog\nb/3,2,dog\n', "utf-8"),
        (
            "csv",
            "image_id,label\nphotos/a/1.png,cat\n2,dog\nhttps://x.org/photos/b/3.png?size=2,dog\n",
            "utf-8",
        ),
        ("csv", "a/1.png,cat\na/2.png,dog\nb\\3.png,dog\n", "utf-8"),  # without titles
        ("tsv", "file\tlabel\na/1.png\tcat\na/2.png\tdog\nb%2F3.png\tdog\n", "utf-8"),
        ("txt", "a/1.png cat\na/2.png dog\n\nb/3.png\tdog\n", "utf-8"),
        ("txt", "a/1.png 3\na/2.png 12\nb/3.png 12\n", "utf-8"),
    ],
)
def test_tables_as_people_write_them(root, ending, text, encoding):
    dataset = build(root, text, ending, encoding=encoding)
    assert content(dataset) == PLAIN
    assert dataset.info.problems == ()
    assert dataset.class_names == (("3", "12") if "12" in text else ("cat", "dog"))
    assert dataset.info.counts.tolist() == [1, 2]
    assert dataset.labels.tolist() == [0, 1, 1]


def test_a_list_of_files_has_its_folders_as_classes(root):
    dataset = build(root, "photos/a/1.png\nphotos/b c/4.JPG\n", "txt")
    assert dataset.class_names == ("a", "b c")


def test_names_with_spaces(root):
    dataset = build(root, "b c/4.jpg fish\na/1.png cat", "txt")
    assert content(dataset) == [("b c/4.JPG", 1), ("a/1.png", 0)]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("image,label\na/1.png,cat|dog\na/2.png,dog\nb/3.png,\n", {"several": True}),
        ("image,label\na/1.png,cat dog\na/2.png,dog\nb/3.png,\n", {"several": True, "separator": " "}),
        ("image,label\na/1.png,cat\na/1.png,dog\na/2.png,dog\nb/3.png,\n", {"several": True}),
        ("image,cat,dog\na/1.png,1,1\na/2.png,0,1.0\nb/3.png,False,\n", {"label": ["cat", "dog"]}),
    ],
)
def test_several_classes_of_an_image(root, text, options):
    dataset = build(root, text, **options)
    assert torch.stack([dataset[i].target for i in range(3)]).tolist() == [[1, 1], [0, 1], [0, 0]]
    info = dataset.info
    assert (info.multi_label, info.labels) == (True, None)
    assert info.counts.tolist() == [1, 2]
    assert info.strata.tolist() == [0, 1, 2]  # the rarest class of each; none


def test_batches_of_several_classes(root):
    (root / "train.csv").write_text("image,cat,dog\na/1.png,1,1\na/2.png,0,1\n")
    (root / "val.csv").write_text("image,cat,dog\nb/3.png,0,1\n")
    config = DataConfig(
        name="image_list", root=root, batch_size=2, image_size=8, workers=0, options={"label": ["cat", "dog"]}
    )
    (batch,) = next(make_train_loader(config, seed=0).batches())
    assert batch.targets.shape == (2, 2)
    assert batch.targets.dtype == torch.float32
    loader = make_eval_loader(config, class_names=["dog", "emu", "cat"])
    assert next(iter(loader)).targets.tolist() == [[1, 0, 0]]


def test_classes_of_train_and_val_are_numbered_together(root):
    val = build(root, "image,label\na/1.png,cat\na/2.png,emu\n", val="image,label\nb/3.png,dog\n", part="val")
    assert val.class_names == ("cat", "dog", "emu")
    assert content(val) == [("b/3.png", 1)]


def test_one_table_is_divided(tmp_path):
    lines = ["image,label"]
    for i in range(40):
        Image.new("L", (4, 4)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'cat' if i % 4 else 'dog'}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    config = DataConfig(name="image_list", root=tmp_path, batch_size=1, train="all.csv", split=0.2)
    train, val = (build_dataset(config, part) for part in ("train", "val"))
    assert np.bincount(val.labels).tolist() == [6, 2]
    assert len(train) + len(val) == 40


def test_rows_that_cannot_be_used_are_counted(root):
    (root / "photos" / "5.heic").write_bytes(b"x")
    text = "image,label\na/1.png,cat\nb/3.png,dog\n9.png,cat\n10.png,cat\n5.heic,dog\na/2.png,\n"
    assert build(root, text).info.problems == (
        "2 rows left out: the file is not there; the first: 9.png",
        "1 rows left out: the file is no image that can be read; the first: photos/5.heic",
        "1 rows left out: they have no class; the first: a/2.png",
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "photo,kind\na/1.png,cat\n",
            {},
            "'train.csv' has the columns 'photo', 'kind'; data.options.image names that of the files.",
        ),
        (
            "image,kind\na/1.png,cat\n",
            {},
            "'train.csv' has the columns 'image', 'kind'; data.options.label names that of the classes.",
        ),
        ("image,kind\n", {"label": "x"}, "'train.csv' lacks the column 'x'; it has 'image', 'kind'."),
        ("image,kind\n", {"label": ["x"]}, "'train.csv' lacks the columns 'x'; it has 'image', 'kind'."),
        (
            "image,label\na/1.png,cat\na/1.png,dog\n",
            {},
            "'train.csv' has 'photos/a/1.png' with the classes 'cat', 'dog'; data.options.several=true lets an image"
            " have several.",
        ),
        (
            "image,label\na/1.png,cat;dog\na/2.png,dog\nb/3.png,cat\n",
            {},
            "1 classes are several in one cell, 'cat;dog'; data.options.several=true data.options.separator=';'"
            " takes them apart.",
        ),
        (
            "image,label\na/1.png,cat|dog\na/2.png,dog\nb/3.png,cat\n",
            {},
            "1 classes are several in one cell, 'cat|dog'; data.options.several=true takes them apart.",
        ),
        (
            'image,label\na/1.png,"cat,dog"\na/2.png,dog\nb/3.png,cat\n',
            {"several": True},
            "1 classes are several in one cell, 'cat,dog'; data.options.several=true data.options.separator=','"
            " takes them apart.",
        ),
        (
            "image,cat,dog\na/1.png,1,1\na/2.png,0,\n",
            {},
            '\'train.csv\' has no column of class names but columns of 0 and 1: data.options.label=["cat", "dog"]'
            " takes each as a class, of which an image may have several.",
        ),
        (
            "image,label\na/1.png,cat\n",
            {},
            "Classification needs two classes or more; 'train.csv' has 'cat'.",
        ),
        (
            "image,label\n8.png,cat\n9.png,dog\n",
            {},
            "No image of '{root}/train.csv' can be used below '{root}': 2 rows left out: the file is not there; the"
            " first: 8.png.",
        ),
    ],
)
def test_tables_that_do_not_read(root, text, options, message):
    with pytest.raises(ValueError) as error:
        build(root, text, **options)
    assert str(error.value) == message.format(root=root)


def test_a_table_that_is_not_there(root):
    (root / "labels.csv").write_text("x")
    with pytest.raises(ValueError) as error:
        DATASETS["image_list"](root, "train")
    assert str(error.value) == (
        f"There is no train.csv in {str(root)!r}, which has 'labels.csv'. Name it with data.train=FILE, or divide one"
        " with data.train=FILE and data.split=0.1."
    )


# Balance


def test_classes_are_drawn_evenly(tmp_path):
    labels = np.repeat([0, 1], [90, 10])
    from tetravit.data.order import Order, balancing

    def share(balance):
        order = Order(100, 1, 0, weights=balancing(labels, balance) if balance else None)
        images = [order.image(e, k) for e in range(20) for k in range(100)]
        assert [order.image(3, k) for k in range(5)] == images[300:305]
        return np.mean(labels[images])

    assert share(0) == 0.1
    assert abs(share(1.0) - 0.5) < 0.04
    assert abs(share(0.5) - 0.25) < 0.04


def test_balance_needs_classes():
    config = DataConfig(name="shapes_det", batch_size=2, workers=0, balance=1.0)
    with pytest.raises(
        ValueError, match=r"^data\.balance draws images by their class: it needs a set of images with classes"
    ):
        make_train_loader(config, seed=0)
    digits = DataConfig(name="digits", batch_size=8, workers=0, balance=1.0, image_size=16)
    a, b = (next(make_train_loader(digits, seed=0).batches(3))[0] for _ in range(2))
    assert torch.equal(a.images, b.images)
