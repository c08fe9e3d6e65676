"""What each data set promises, and what it says when it cannot keep it."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tetravit.data.build import build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS
from tetravit.data.datasets.base import keep_fraction, kind_of
from tetravit.data.datasets.digits import Digits, read_all
from tetravit.data.datasets.image_folder import ImageFolder, ImageNet
from tetravit.data.datasets.synthetic import Synthetic
from tetravit.data.decode import BadImage
from tetravit.data.shards.pack import pack


def write(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                write(tmp_path / split / name / f"{i}.png")
        (tmp_path / f"{split}.txt").write_text(f"{split}/cat/0.png cat\n{split}/dog/1.png dog\n")
    return tmp_path


# Every set; those with published files are read from imitations of them, in test_imagenet and others

PUBLISHED = ("imagenet", "cifar", "flowers", "cars", "inat", "mnist", "hf")
LABELLED = [name for name, row in DATASETS.items() if kind_of(row) == "classify"]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", [name for name in LABELLED if not name.startswith(PUBLISHED)])
def test_every_set_keeps_the_contract(name, split, root):
    place = root if name.startswith("image_") else None
    if name == "shards":
        place = root.with_name(f"{root.name}-shards")
        pack(root, place, name="image_folder", workers=1)
    dataset = DATASETS[name](place, split)
    assert dataset.num_classes == len(dataset.class_names) >= 2
    assert len(dataset) > 0
    for i in (0, len(dataset) - 1):
        sample = dataset[i]
        assert sample.image.dtype == torch.uint8
        assert sample.image.ndim == 3
        assert sample.image.shape[0] == 3
        assert type(sample.target) is int
        assert 0 <= sample.target < dataset.num_classes
        assert split in sample.name
        assert torch.equal(sample.image, dataset[i].image)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0].image, dataset[0].image)
    with pytest.raises(ValueError) as caught:
        DATASETS[name](root if name.startswith("image_") else None, "trial")
    assert str(caught.value).startswith("split takes one of train, val")


# Digits


def test_the_digits_are_those_of_scikit_learn():
    images, labels = read_all()
    theirs = load_digits()
    assert (images == np.rint(theirs.images * 255 / 16)).all()
    assert (labels == theirs.target).all()


def test_the_split_is_fixed_stratified_and_without_overlap():
    train, val = Digits(None, "train"), Digits(None, "val")
    assert (len(train), len(val)) == (1438, 359)
    assert sorted([*train.numbers, *val.numbers]) == list(range(1797))
    assert np.bincount(train.labels).tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert np.bincount(val.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert val.numbers[:5].tolist() == [20, 21, 22, 23, 24]
    sample = val[0]
    assert sample.name == "digits/val/20"
    assert sample.image.shape == (3, 8, 8)
    expected = torch.from_numpy(read_all()[0][20])
    assert all(torch.equal(channel, expected) for channel in sample.image)


def test_a_fraction_keeps_the_first_of_each_class():
    whole, tenth = Digits(None, "train"), Digits(None, "train", fraction=0.1)
    assert np.bincount(tenth.labels).tolist() == [14, 14, 14, 14, 14, 14, 14, 14, 13, 14]
    for label in range(10):
        mine = tenth.numbers[tenth.labels == label]
        assert mine.tolist() == whole.numbers[whole.labels == label][: len(mine)].tolist()
    assert len(Digits(None, "val", fraction=0.1)) == 359


def test_keep_fraction():
    labels = np.array([1, 0, 1, 1, 0, 1])
    assert keep_fraction(labels, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert keep_fraction(labels, 0.5).tolist() == [0, 1, 2]
    assert keep_fraction(labels, 0.01).tolist() == [0, 1]
    assert keep_fraction(np.repeat(0, 10), 0.3).tolist() == [0, 1, 2]  # 10 * 0.3 is 3, rounding or not
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError) as caught:
            keep_fraction(labels, bad)
        assert str(caught.value) == f"fraction is above 0 and at most 1; got {bad}."


def test_embedded_and_made_up_sets_take_no_root(tmp_path):
    for name in ("digits", "synthetic"):
        with pytest.raises(ValueError) as caught:
            DATASETS[name](tmp_path, "train")
        assert str(caught.value) == (
            f"The data set {name!r} needs no root; got {str(tmp_path)!r}. data.name names a set that reads"
            " folders."
        )


# Image folders


def test_images_are_found_in_order_at_any_depth_in_any_case(tmp_path):
    for path in ("b/2.JPG", "b/10.jpeg", "b/deep/er/1.Png", "b/.hidden.png", "a/x.webp", ".cache/1.png"):
        write(tmp_path / "train" / path)
    (tmp_path / "train" / "b" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "README.md").write_text("no class")
    dataset = ImageFolder(tmp_path, "train")
    assert dataset.class_names == ("a", "b")
    assert [dataset.path(i) for i in range(len(dataset))] == [
        str(tmp_path / "train" / p) for p in ("a/x.webp", "b/10.jpeg", "b/2.JPG", "b/deep/er/1.Png")
    ]
    assert dataset.labels.tolist() == [0, 1, 1, 1]
    assert dataset[3].name == dataset.path(3)
    assert dataset[3].image.shape == (3, 4, 6)


def test_names_that_are_no_utf8_work(root):
    name = b"\xff\xe9.png".decode("utf-8", "surrogateescape")
    try:
        write(root / "train" / "cat" / "plain.png")
        (root / "train" / "cat" / "plain.png").rename(root / "train" / "cat" / name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    dataset = ImageFolder(root, "train")
    assert any(dataset[i].name.endswith(name) for i in range(len(dataset)))


def test_links_back_up_are_not_followed_and_links_to_folders_are(root, tmp_path):
    (root / "train" / "cat" / "loop").symlink_to(root / "train" / "cat", target_is_directory=True)
    (root / "train" / "dog" / "more").symlink_to(root / "val" / "dog", target_is_directory=True)
    assert ImageFolder(root, "train").labels.tolist() == [0] * 3 + [1] * 6


def test_paths_cost_no_python_objects(root):
    dataset = ImageFolder(root, "train")
    assert dataset._paths.dtype == np.uint8
    assert len(pickle.dumps(dataset)) < 2000


def test_a_fraction_of_a_folder(root):
    dataset = ImageFolder(root, "train", fraction=0.4)
    assert [dataset.path(i)[-9:] for i in range(len(dataset))] == ["cat/0.png", "dog/0.png"]
    assert dataset.labels.tolist() == [0, 1]
    assert len(ImageFolder(root, "val", fraction=0.4)) == 6


def test_class_names_from_a_file(root):
    file = root / "names.txt"
    file.write_text("dog  the dog, Canis familiaris\ncat cat\nemu emu\n\n")
    assert ImageFolder(root, "train", names=file).class_names == ("cat", "the dog, Canis familiaris")
    file.write_text("dog dog\n")
    with pytest.raises(ValueError) as caught:
        ImageFolder(root, "train", names=file)
    assert str(caught.value) == f"The class names in {str(file)!r} lack 'cat'."
    file.write_text("\ufeffcat cat\ndog dog\n", encoding="utf-8")  # as Notepad writes it
    assert ImageFolder(root, "train", names=file).class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"^Cannot read .*nowhere\.txt': no such file or directory\.$"):
        ImageFolder(root, "train", names=root / "nowhere.txt")


def test_a_broken_image_is_named_when_it_is_read(root):
    (root / "train" / "cat" / "1.png").write_bytes(b"<html>")
    dataset = ImageFolder(root, "train")
    with pytest.raises(BadImage) as caught:
        dataset[1]
    assert caught.value.name == str(root / "train" / "cat" / "1.png")
    (root / "train" / "cat" / "0.png").unlink()
    with pytest.raises(BadImage, match="no such file or directory"):
        dataset[0]


def remove(path):
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


LAYOUT = "the layout is ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE"
CURE = "Name it with data.train=FOLDER, or divide the images with data.split=0.1."


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda r: remove(r), "There is no folder '{root}'."),
        (
            lambda r: remove(r / "train"),
            f"There is no folder 'train' in '{{root}}', which has 'val'; {LAYOUT}. {CURE}",
        ),
        (
            lambda r: (remove(r / "train"), (r / "train").mkdir()),
            "The class folders of '{root}/train' hold no image.",
        ),
        (
            lambda r: (remove(r / "train" / "dog"), remove(r / "val" / "dog")),
            "Classification needs two class folders or more in '{root}/train'; found only 'cat'.",
        ),
        (
            lambda r: [f.rename(f.with_suffix(".HEIC")) for f in (r / "train" / "cat").iterdir()],
            "The class folder '{root}/train/cat' holds no image: 3 files left out: .heic cannot be read; convert them"
            " to .jpg or .png; the first: {root}/train/cat/",
        ),
    ],
)
def test_folders_that_are_not_right(root, damage, text):
    damage(root)
    with pytest.raises(ValueError) as caught:
        ImageFolder(root, "train")
    assert str(caught.value).startswith(text.format(root=root))


def test_validation_alone_is_enough_to_evaluate(root):
    remove(root / "train")
    assert len(ImageFolder(root, "val")) == 6


def test_imagenet_has_a_thousand_classes(root):
    with pytest.raises(ValueError) as caught:
        ImageNet(root, "train")
    assert str(caught.value) == (
        f"imagenet has 1000 classes; {str(root / 'train')!r} has 2. For other sets use data.name=image_folder."
    )
    remove(root / "train")
    remove(root / "val")
    for i in range(1000):
        (root / "val" / f"n{i:08}").mkdir(parents=True)
        (root / "val" / f"n{i:08}" / "1.JPEG").touch()
    dataset = ImageNet(root, "val")
    assert (dataset.num_classes, len(dataset)) == (1000, 1000)


# Synthetic


def test_synthetic_images_repeat_and_classes_share_a_pattern():
    a, b = (
        Synthetic(None, "train", num_classes=3, image_size=12),
        Synthetic(None, "val", num_classes=3, image_size=12),
    )
    assert torch.equal(a[5].image, Synthetic(None, "train", num_classes=3, image_size=12)[5].image)
    assert not torch.equal(a[5].image, b[5].image)
    assert [a[i].target for i in range(4)] == [0, 1, 2, 0]

    def apart(i, j):
        return (a[i].image.float() - b[j].image.float()).abs().mean()

    assert apart(0, 3) < apart(0, 1)


def test_synthetic_sizes():
    with pytest.raises(ValueError) as caught:
        Synthetic(None, "train", num_classes=1)
    assert str(caught.value) == (
        "synthetic takes num_classes from 2, size and image_size from 1;"
        " got num_classes=1, size=1000, image_size=224."
    )


@pytest.mark.parametrize("other", [("masks",), ("labels", "annotations"), ("Labels",)])
def test_images_and_what_belongs_to_them_are_no_classes(tmp_path, other):
    for name in ("images", *other):
        write(tmp_path / "train" / name / "0.png")
    with pytest.raises(ValueError) as error:
        ImageFolder(tmp_path, "train")
    names = ", ".join(map(repr, sorted(("images", *other))))
    assert str(error.value) == (
        f"The folders of {str(tmp_path / 'train')!r} are {names}, images and their annotations, not classes;"
        " data.name=label_folder, yolo or coco reads them."
    )


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        ("train/_annotations.coco.json", "coco", "detect"),
        ("data.yaml", "yolo", "detect"),
        ("classes.txt", "label_folder", "segment"),
        ("train.csv", "image_list", "classify"),
    ],
)
def test_a_folder_of_another_layout_is_said(tmp_path, file, name, kind):
    (tmp_path / "train").mkdir()
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError) as error:
        build_dataset(DataConfig(name="image_folder", root=str(tmp_path), batch_size=1), "train")
    assert str(error.value).endswith(f" The folder has the layout of data.name={name}, a set to {kind}.")
    with pytest.raises(ValueError) as error:
        build_dataset(DataConfig(name=name, root=str(tmp_path), batch_size=1), "train")
    assert "has the layout of" not in str(error.value)
    with pytest.raises(
        ValueError, match=rf"The folder has the layout of data\.name={name}, a set to {kind}\.$"
    ):
        build_dataset(DataConfig(name="digits", root=str(tmp_path), batch_size=1), "train")
