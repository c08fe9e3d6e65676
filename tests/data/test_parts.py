"""Where the parts of a set lie, how a set is divided, and what is said of classes that a part lacks."""

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.build import build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS, Dataset
from tetravit.data.evaluation import make_eval_loader
from tetravit.data.parts import NAMES, Parts, class_notes, divided, find_part
from tetravit.data.subset import Renumbered, Subset
from tetravit.structures import Sample, Target


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Parts train and val of two classes, 10 and 3 images each."""
    for part, n in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            for i in range(n):
                write(tmp_path / part / name / f"{i}.png")
    return tmp_path


def build(root, part, **options):
    return build_dataset(DataConfig(name="image_folder", root=root, batch_size=1, **options), part)


def keys(dataset):
    return [dataset.key(i) for i in range(len(dataset))]


@pytest.mark.parametrize("name", [*NAMES["val"], "Val", "VALIDATION"])
def test_a_part_has_several_names(folder, name):
    (folder / "val").rename(folder / name)
    assert find_part(str(folder), "val") == str(folder / name)
    assert len(build(folder, "val")) == 6


def test_the_first_name_counts(folder):
    write(folder / "valid" / "cat" / "9.png")
    write(folder / "VAL" / "cat" / "9.png")
    assert len(build(folder, "val")) == 6


def test_a_recipe_names_parts(folder, tmp_path, monkeypatch):
    (folder / "val").rename(folder / "holdout")
    assert len(build(folder, "val", val="holdout")) == 6
    assert len(build(folder, "test", test=["holdout", "train"])) == 26
    monkeypatch.chdir(folder)
    config = DataConfig(name="image_folder", batch_size=1, train="train", val=["holdout"])
    assert config.train == str(folder / "train")
    assert config.val == (str(folder / "holdout"),)
    assert len(build_dataset(config, "train")) == 20
    several = build(folder, "train", train=["holdout", "train"])
    assert several[0].name == str(folder / "holdout" / "cat" / "0.png")
    assert several[25].name == str(folder / "train" / "dog" / "9.png")
    assert several.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 10 + [1] * 10
    assert DataConfig(name="image_folder", batch_size=1, root=folder, train=2024).train == "2024"


def test_a_part_that_is_not_there_says_what_is(folder):
    (folder / "val").rename(folder / "holdout")
    with pytest.raises(ValueError) as error:
        build(folder, "val")
    assert str(error.value) == (
        f"There is no folder 'val' in {str(folder)!r}, which has 'holdout', 'train'; the layout is"
        " ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE. Name it with data.val=FOLDER, or divide the images with"
        " data.split=0.1."
    )


def test_sets_with_parts_of_their_own_take_no_others():
    with pytest.raises(ValueError) as error:
        build_dataset(DataConfig(name="digits", batch_size=1, val="x"), "val")
    assert str(error.value) == "The data set 'digits' has its own parts; it takes no data.val."


# Division


def test_a_set_without_parts_is_divided(folder):
    whole = folder / "train"
    train, val = (build(whole, part, split=0.2) for part in ("train", "val"))
    assert sorted(keys(train) + keys(val)) == sorted(
        f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)
    )
    assert np.bincount(val.labels).tolist() == [2, 2]
    assert keys(val) == keys(build(folder, "val", split=0.2))  # whatever the root, and beside a val folder
    assert keys(val) != keys(build(whole, "val", split=0.2, split_seed=1))
    assert val[0].target == 0
    assert val.info.counts.tolist() == [2, 2]
    assert len(build(folder, "val", split=0.2, val="val")) == 6  # a part that is named counts


def test_more_images_move_none(folder):
    before = keys(build(folder, "val", split=0.5))
    for i in range(10, 12):
        write(folder / "train" / "cat" / f"{i}.png")
    after = keys(build(folder, "val", split=0.5))
    assert set(before) <= set(after)


def test_digits_are_divided_too():
    config = DataConfig(name="digits", batch_size=1, split=0.25)
    train, val = (build_dataset(config, part) for part in ("train", "val"))
    assert len(train) + len(val) == 1438
    assert abs(np.bincount(val.labels) / np.bincount(train.labels) - 1 / 3).max() < 0.02


def test_groups_stay_together():
    names = [f"cat/{animal}_{shot}.png" for animal in range(20) for shot in range(5)]
    held = divided(names, None, share=0.2, by=r"(.*)_\d+")
    assert held.reshape(20, 5).all(1).sum() == 4
    assert held.sum() == 20
    by_folder = divided([f"{i // 10}/{i}.png" for i in range(100)], None, share=0.1, by="folder")
    assert by_folder.reshape(10, 10).all(1).sum() == by_folder.sum() / 10 == 1
    alone = divided(["a/1", "a/2", "b/1"], np.array([0, 0, 1]), share=0.4)
    assert alone.sum() == 1
    assert not alone[2]  # a class of one image trains


@pytest.mark.parametrize(
    ("by", "text"),
    [
        (
            "(",
            "data.split_by is 'folder' or a regular expression; got '(': missing ), unterminated subpattern at",
        ),
        ("x(.)", "data.split_by='x(.)' matches none of the 2 names; the first is 'a/1'."),
    ],
)
def test_keys_that_do_not_read(by, text):
    with pytest.raises(ValueError) as error:
        divided(["a/1", "a/2"], None, share=0.5, by=by)
    assert str(error.value).startswith(text)


def test_nothing_to_hold_out():
    with pytest.raises(ValueError) as error:
        divided(["a", "b"], np.array([0, 1]), share=0.5)
    assert str(error.value) == "data.split=0.5 holds out no image: there are 2 groups of images in 2 classes."


# Classes


@pytest.mark.parametrize("remove", ["images", "folder"])
def test_a_class_without_validation_images(folder, remove):
    for file in (folder / "val" / "cat").iterdir():
        file.unlink()
    if remove == "folder":
        (folder / "val" / "cat").rmdir()
    val = build(folder, "val")
    assert val.class_names == ("cat", "dog")
    assert val.labels.tolist() == [1, 1, 1]
    assert class_notes(val.info.counts, val.class_names, "the validation images") == [
        "1 class has nothing in the validation images: 'cat'"
    ]


def test_a_class_that_only_validates(folder):
    write(folder / "val" / "emu" / "1.png")
    train = build(folder, "train")
    assert train.class_names == ("cat", "dog", "emu")
    assert class_notes(train.info.counts, train.class_names, "x") == ["1 class has nothing in x: 'emu'"]


def test_classes_follow_the_model(folder):
    config = DataConfig(name="image_folder", root=folder, batch_size=8, workers=0, image_size=4)
    loader = make_eval_loader(config, class_names=["emu", "dog", "cat"])
    assert next(iter(loader)).targets.tolist() == [2, 2, 2, 1, 1, 1]
    assert loader.dataset.info.counts.tolist() == [0, 3, 3]
    with pytest.raises(ValueError) as error:
        make_eval_loader(config, class_names=["dog", "emu"])
    assert str(error.value) == (
        "1 of the 2 classes of the data set are not among the 2 of the model: 'cat'; the model has 'dog', 'emu'."
    )


class Some(Dataset):
    num_classes, class_names = 2, ("a", "b")

    def __init__(self, target):
        self.target = target

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(torch.zeros(3, 2, 2), self.target, "x")


def test_every_kind_of_target_is_renumbered():
    def renumbered(target):
        return Renumbered(Some(target), ["c", "b", "a"])[0].target

    assert renumbered(0) == 2
    assert renumbered((0, 1)) == (2, 1)
    assert renumbered(torch.tensor([1.0, 0.0])).tolist() == [0, 0, 1]
    labels = torch.tensor([[0, 1, 255, 9]], dtype=torch.uint8)
    assert renumbered(labels).tolist() == [[2, 1, 255, 9]]
    assert renumbered(labels).dtype == torch.uint8
    target = Target(torch.zeros(2, 4), torch.tensor([1, 0]))
    assert renumbered(target).labels.tolist() == [1, 2]
    assert renumbered(None) is None


def test_a_subset_keeps_what_is_known(folder):
    part = Subset(DATASETS["image_folder"](folder, "train"), np.array([3, 12]))
    assert (len(part), part.key(1), part[1].target) == (2, "dog/2.png", 1)
    assert part.info.labels.tolist() == [0, 1]
    with pytest.raises(IndexError):
        part[2]


def test_parts_of_python(folder):
    parts = Parts(str(folder), test=("val",))
    assert parts.place("test").given == (str(folder / "val"),)
    assert len(DATASETS["image_folder"](folder, "test", parts=parts)) == 6
