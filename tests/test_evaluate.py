"""Published weights on ImageNet and the sets around it: classes, competing logits, others' figures beside ours."""

import json
from importlib.resources import files

import pytest
import torch
from authors import golden
from PIL import Image

from tetravit.cli import main
from tetravit.data import imagenet
from tetravit.models import create_model, load, save
from tetravit.protocols.accuracy import SomeClasses
from tetravit.protocols.knn import KnnConfig
from tetravit.protocols.references import references
from tetravit.runs.evaluate import evaluate, published
from tetravit.structures import Preprocess
from tetravit.weights import CHECKPOINTS, store

pytestmark = pytest.mark.slow  # whole runs and other processes

NAME = "xcit_nano_12_p16.in1k"
INFO = files("timm.data") / "_info"


class Sorter(torch.nn.Module):
    """Reads a class off the red of an image, a quarter of it: logits fall with the distance from that class."""

    kind = "classify"
    num_classes = 1000
    class_names = imagenet.class_names()
    input = Preprocess(size=224, crop=1.0)

    def __init__(self):
        super().__init__()
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        red = images[:, 0, 0, 0] * input_std + input_mean  # 0..1
        guess = (red * 255).round() * 4  # 0, 4, ... 996
        return -(torch.arange(1000.0) - guess[:, None] - 0.25).abs()  # no two alike


input_mean, input_std = Preprocess().mean[0], Preprocess().std[0]


@pytest.fixture
def sorter(monkeypatch):
    monkeypatch.setattr("tetravit.runs.evaluate.load", lambda source, accept_license: Sorter())


def paint(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (label // 4, 0, 0)).save(path, format="PNG")


def scores(root, data, **options):
    overrides = [f"data.name={data}", f"data.root={root}", "data.workers=0", *options.pop("overrides", ())]
    return evaluate(NAME, overrides, device="cpu", **options)


def labels_of(letter):
    return [int(i) for i in (INFO / f"imagenet_{letter}_indices.txt").read_text().split()]


def test_v2_counts_its_folders_as_numbers(sorter, tmp_path):
    for i in range(1000):
        paint(tmp_path / str(i) / "a.jpeg", i if i >= 500 else 0)
    result = scores(tmp_path, "imagenet_v2")
    assert result.images == 1000
    # Right where the class is a multiple of 4; among five, two on each side are. Of class 0 there are 500 images.
    assert result.scores["top1"] == (125 + 1) / 1000
    assert result.scores["top5"] == (375 + 5) / 1000


@pytest.mark.parametrize("letter", ["a", "r"])
def test_only_the_classes_of_the_set_compete(sorter, tmp_path, letter):
    wnids = imagenet.wordnet_ids()
    for i in labels_of(letter):
        paint(tmp_path / wnids[i] / "a.jpg", i)
    result = scores(tmp_path, f"imagenet_{letter}")
    nearest = [min(labels_of(letter), key=lambda j: abs(j - i // 4 * 4 - 0.25)) for i in labels_of(letter)]
    alone = sum(i == j for i, j in zip(labels_of(letter), nearest, strict=True)) / 200
    assert result.scores["top1"] == alone
    assert (
        result.scores["top1"] > sum(i % 4 == 0 for i in labels_of(letter)) / 200
    )  # what all 1000 would give
    (figure,) = result.references
    assert (figure.score, figure.kind, figure.by) == ("top1", "measured", "timm results")
    assert figure.value == pytest.approx({"a": 0.04813, "r": 0.33037}[letter])


def test_sketch_has_every_class(sorter, tmp_path):
    for wnid in imagenet.wordnet_ids():
        paint(tmp_path / wnid / "s.JPEG", 8)
    result = scores(tmp_path, "imagenet_sketch")
    assert result.scores["top1"] == 1 / 1000
    assert result.scores["top5"] == 5 / 1000
    assert [f.images for f in result.references] == [50_889]


def test_any_of_several_answers_is_right(sorter, tmp_path):
    for number, label in ((1, 0), (2, 8), (3, 12), (4, 16)):
        paint(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", label)
    (tmp_path / "real.json").write_text("[[7, 0], [500], [], [17]]")
    result = scores(tmp_path, "imagenet_real", overrides=[f"data.options.labels={tmp_path}/real.json"])
    assert result.images == 3
    assert result.scores == {"top1": 1 / 3, "top5": 2 / 3}
    assert [(f.kind, round(100 * f.value, 3)) for f in result.references] == [("measured", 77.906)]


def test_a_folder_of_imagenet_has_published_and_measured_figures(sorter, tmp_path):
    for wnid in imagenet.wordnet_ids():
        paint(tmp_path / "val" / wnid / "ILSVRC2012_val_00000001.JPEG", 4)
    result = scores(tmp_path, "imagenet")
    assert result.scores["top1"] == 1 / 1000
    told = [(f.score, f.kind, round(100 * f.value, 3), f.images) for f in result.references]
    assert told == [
        ("top1", "published", 69.9, 50_000),
        ("top1", "measured", 69.982, 50_000),
        ("top5", "measured", 89.78, 50_000),
    ]
    assert scores(tmp_path, "imagenet", overrides=["data.image_size=192"]).references == ()


def test_other_data_has_no_figures():
    assert references(CHECKPOINTS[NAME], "digits") == ()


def test_what_a_file_was_converted_from(tmp_path):
    model = create_model("xcit_nano_12_p16", depth=1, num_classes=0)
    url = CHECKPOINTS[NAME].sources[0].url
    save(model, tmp_path / "a.safetensors", source=url)
    save(model, tmp_path / "b.safetensors", source=url, recipe="epochs = 1")  # trained further: other weights
    assert published(tmp_path / "a.safetensors") is CHECKPOINTS[NAME]
    assert published(tmp_path / "b.safetensors") is None
    assert published(NAME) is CHECKPOINTS[NAME]
    assert published("xcit_small_12_p16.dino") is CHECKPOINTS["xcit_small_12_p16.dino"]


def test_features_without_labels_have_published_figures():
    row = CHECKPOINTS["xcit_small_12_p16.dino"]
    told = [(f.score, f.kind, round(100 * f.value, 3)) for f in references(row, "imagenet", KnnConfig())]
    assert told == [("knn_20", "published", 76.0), ("linear", "published", 77.8)]
    assert [f.score for f in references(row, "imagenet", KnnConfig(images_per_class=10))] == []


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(ValueError) as caught:
        SomeClasses(create_model("xcit_nano_12_p16", depth=1, num_classes=10), range(200))
    assert str(caught.value) == "The model has 10 classes; the data takes those of ImageNet-1k, 1000."


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without a network that holds the authors' file of the smallest XCiT."""
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1")
    path = store.place(CHECKPOINTS[NAME].sources[0].url)
    path.parent.mkdir(parents=True)
    torch.save({"model": golden("xcit_nano_12_p16").state()}, path)
    return tmp_path


def test_published_weights_know_their_classes(offline):
    model = load(NAME)
    assert model.class_names == imagenet.class_names()
    assert create_model("xcit_nano_12_p16", weights="in1k", num_classes=5).class_names == ()


def test_predict_names_the_classes_of_published_weights(offline, capsys):
    name = "gcvit_xxtiny.in1k"
    path = store.place(CHECKPOINTS[name].sources[0].url)
    torch.save({"state_dict": golden("gcvit_xxtiny").state(), "epoch": 1}, path)
    paint(offline / "cat.png", 400)
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--model", name, str(offline / "cat.png"), "--accept-license", "--json"])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    guesses = json.loads(printed.out)["top"]
    assert [guess["class"] for guess in guesses] == [imagenet.class_names()[g["index"]] for g in guesses]
    assert "tensors" in printed.err  # what became of each


def test_the_table_of_figures(sorter, tmp_path, capsys):
    for i in labels_of("r"):
        paint(tmp_path / "r" / imagenet.wordnet_ids()[i] / "a.jpg", i)
    arguments = ["evaluate", NAME, "data.name=imagenet_r", f"data.root={tmp_path}/r", "data.workers=0"]

    def ask(*more):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *more])
        assert not ended.value.code
        return capsys.readouterr()

    printed = ask("--json")
    row = json.loads(printed.out)
    (figure,) = row["references"]
    assert figure["gap"] == pytest.approx(row["top1"] - 0.33037)
    assert printed.err == "Others' figures are for all 30000 images of imagenet_r; these are 200.\n"
    (line,) = [line.split() for line in ask().out.splitlines() if "33.04 %" in line]
    ours, gap = f"{100 * row['top1']:.2f}", f"{100 * figure['gap']:+.2f}"
    assert line == ["top1", ours, "%", "33.04", "%", gap, "measured", "timm", "results"]


def test_overrides_that_scoring_would_not_follow_are_refused(sorter):
    for override in ("model.head_options.score_threshold=0.9", "task.loss=bce", "run.precision=fp16"):
        with pytest.raises(ValueError) as caught:
            evaluate(NAME, [override])
        assert str(caught.value) == f"evaluate takes changes of data.* and evaluate.*; got {override!r}."


def test_another_protocol_takes_none_of_the_options_of_the_recipe(sorter):
    with pytest.raises(ValueError, match=r"^Unknown protocol 'acuracy'\. Did you mean 'accuracy'\?$"):
        evaluate(NAME, ["evaluate.protocol=acuracy"])


def test_a_run_without_a_score_is_loaded_from_its_last_weights(tmp_path):
    model = create_model("xcit_nano_12_p16", depth=1, num_classes=3)
    (tmp_path / "recipe.toml").write_text("epochs = 1")
    save(model, tmp_path / "last.safetensors")
    assert load(tmp_path).num_classes == 3
    save(create_model("xcit_nano_12_p16", depth=1, num_classes=5), tmp_path / "best.safetensors")
    assert load(tmp_path).num_classes == 5


def test_a_protocol_of_another_kind_of_model_is_refused(sorter):
    with pytest.raises(ValueError) as error:
        evaluate(NAME, ["evaluate.protocol=miou"])
    assert str(error.value) == (
        f"The protocol 'miou' scores segmenters; {NAME} is a classifier. Protocols for it: accuracy, knn, linear."
    )
