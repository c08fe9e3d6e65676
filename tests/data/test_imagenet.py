"""ImageNet's classes, and the test sets around it, in folders as their archives unpack."""

import json
import pickle
from importlib.resources import files

import pytest
from PIL import Image

from tetravit.data import imagenet
from tetravit.data.datasets import DATASETS
from tetravit.data.datasets.image_folder import ImageNet

INFO = files("timm.data") / "_info"


def lines(name: str) -> list[str]:
    return (INFO / name).read_text().split()


@pytest.fixture(scope="session")
def png(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("image") / "a.png"
    Image.new("RGB", (4, 4), (200, 100, 50)).save(file)
    return file.read_bytes()


@pytest.fixture
def write(tmp_path, png):
    """`write("n01440764/a.JPEG", ...)` makes images below a root, which it returns."""

    def make(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(png)
        return tmp_path

    return make


def test_the_classes_are_timms():
    assert list(imagenet.wordnet_ids()) == lines("imagenet_synsets.txt")
    names = imagenet.class_names()
    assert len(set(names)) == 1000
    assert (names[0], names[134], names[517], names[999]) == ("tench", "crane bird", "crane", "toilet tissue")


def test_names_that_are_numbers_become_readable():
    assert imagenet.readable(["n01440764", "n01443537", "mine"]) == ("tench", "goldfish", "mine")
    assert imagenet.readable(["cat", "n01440764"]) == ("cat", "n01440764")
    assert imagenet.readable([]) == ()


def test_an_imagenet_folder_has_readable_names(write):
    root = write(
        *(f"val/{wnid}/ILSVRC2012_val_0000000{i % 9}.JPEG" for i, wnid in enumerate(imagenet.wordnet_ids()))
    )
    assert ImageNet(root, "val").class_names == imagenet.class_names()


@pytest.mark.parametrize(("name", "letter"), [("imagenet_a", "a"), ("imagenet_r", "r")])
def test_sets_of_200_classes_take_the_logits_of_those(name, letter, write):
    synsets = lines(f"imagenet_{letter}_synsets.txt")
    root = write(*(f"{wnid}/0_.jpg" for wnid in synsets), f"{synsets[7]}/1.jpg", "README.txt")
    dataset = DATASETS[name](root, "val")
    assert list(dataset.classes) == [int(i) for i in lines(f"imagenet_{letter}_indices.txt")]
    assert (dataset.num_classes, len(dataset)) == (200, 201)
    assert [dataset[i].target for i in (0, 7, 8, 200)] == [0, 7, 7, 199]
    assert dataset[8].name == str(root / synsets[7] / "1.jpg")
    assert dataset[0].image.shape == (3, 4, 4)
    assert dataset.class_names[7] == imagenet.class_names()[dataset.classes[7]]
    assert len(pickle.loads(pickle.dumps(dataset))) == 201
    with pytest.raises(IndexError):
        dataset[201]


def test_the_folders_of_v2_are_numbers(write):
    root = write(*(f"{i}/x.jpeg" for i in range(1000)))
    dataset = DATASETS["imagenet_v2"](root, "val")
    assert dataset.classes == tuple(range(1000))
    for i in (2, 10, 999):
        assert (dataset[i].target, dataset[i].name) == (i, str(root / str(i) / "x.jpeg"))


def test_sketch_has_all_classes(write):
    root = write(*(f"{wnid}/sketch_0.JPEG" for wnid in imagenet.wordnet_ids()))
    dataset = DATASETS["imagenet_sketch"](root, "val")
    assert dataset.class_names == imagenet.class_names()
    assert [dataset[i].target for i in (0, 500, 999)] == [0, 500, 999]


@pytest.mark.parametrize("place", ["", "val/", "val/n01440764/"])
def test_real_has_several_right_answers(write, place, tmp_path):
    root = write(*(f"{place}ILSVRC2012_val_0000000{i}.JPEG" for i in (3, 1, 2)))
    (tmp_path / "real.json").write_text("[[970, 795], [], [231], [1]]")
    dataset = DATASETS["imagenet_real"](root, "val", labels=tmp_path / "real.json")
    assert [dataset[i].target for i in range(len(dataset))] == [(970, 795), (231,)]
    assert dataset[1].name.endswith("3.JPEG")
    assert dataset.num_classes == 1000


@pytest.mark.slow
def test_the_published_labels_are_read(write):
    root = write("ILSVRC2012_val_00050000.JPEG", "ILSVRC2012_val_00000001.JPEG")
    labels = json.loads((INFO / "imagenet_real_labels.json").read_text())
    dataset = DATASETS["imagenet_real"](root, "val", labels=str(INFO / "imagenet_real_labels.json"))
    assert labels[0] == []  # the first image has no label and is left out
    assert [dataset[i].target for i in range(len(dataset))] == [tuple(labels[-1])]
    assert sum(map(bool, labels)) == 46_837


@pytest.mark.parametrize(
    ("name", "root", "options", "text"),
    [
        ("imagenet_a", None, {}, "imagenet_a needs its root, the folder that its archive unpacks to."),
        ("imagenet_a", "none", {}, "There is no folder 'ROOT/none'."),
        ("imagenet_a", "", {}, "imagenet_a has 200 class folders, WordNet numbers; 'ROOT' has 1."),
        ("imagenet_v2", "", {}, "imagenet_v2 has 1000 class folders, 0 to 999; 'ROOT' has 0."),
        (
            "imagenet_real",
            "",
            {},
            "imagenet_real needs its labels: data.options.labels=FILE, the authors' real.json.",
        ),
        (
            "imagenet_real",
            "",
            {"labels": "none.json"},
            "Cannot read the labels in 'ROOT/none.json': No such file or directory.",
        ),
        (
            "imagenet_real",
            "",
            {"labels": "flat.json"},
            "'ROOT/flat.json' does not hold ReaL's labels: a list of lists of classes 0 to 999.",
        ),
        (
            "imagenet_real",
            "",
            {"labels": "real.json"},
            "imagenet_real has images ILSVRC2012_val_00000001.JPEG to 00000001; got 'ROOT/n01440764/a.jpg'.",
        ),
        ("imagenet_real", "val", {"labels": "real.json"}, "There are no images in the folder 'ROOT/val'."),
        ("imagenet_real", "one", {"labels": "real.json"}, "There are no images with labels in 'ROOT/one'."),
    ],
)
def test_mistakes(name, root, options, text, write, tmp_path):
    write("n01440764/a.jpg", "one/ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "val").mkdir()
    (tmp_path / "flat.json").write_text("[1, 2]")
    (tmp_path / "real.json").write_text("[[]]")
    if (root, options.get("labels")) == ("", "real.json"):
        (tmp_path / "val").rmdir()
    options = {key: tmp_path / value for key, value in options.items()}
    with pytest.raises(ValueError) as caught:
        DATASETS[name](None if root is None else tmp_path / root, "val", **options)
    assert str(caught.value) == text.replace("ROOT", str(tmp_path))


def test_a_test_set_is_not_trained_on(tmp_path):
    with pytest.raises(ValueError) as caught:
        DATASETS["imagenet_v2"](tmp_path, "train")
    assert str(caught.value) == "imagenet_v2 is a test set: its split is val; got 'train'."
