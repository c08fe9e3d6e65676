"""Weights of a segmenter on the command line: predict, evaluate; and the report of a run."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.decode import decode
from tetravit.data.layouts import write_shapes
from tetravit.data.preprocess import preprocess, scaled
from tetravit.data.shapes import SEGMENTS
from tetravit.models import create_segmenter, save
from tetravit.models import load as load_model
from tetravit.models.inference import Inference, segment
from tetravit.protocols.miou import MIoUConfig, encoded
from tetravit.protocols.references import references
from tetravit.recipe import dump, find, load
from tetravit.report import write
from tetravit.structures import Preprocess
from tetravit.weights import CHECKPOINTS

TINY = "model.options={dims = [8, 8, 8, 8], depths = [1, 1, 1, 1], num_heads = [1, 1, 1, 1]}"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Untrained weights of a tiny segmenter that knows shapes, with the recipe a run would leave."""
    torch.manual_seed(0)
    options = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    model = create_segmenter("twins_svt_small", num_classes=9, head_options={"width": 8}, **options).eval()
    torch.nn.init.normal_(model.head.score.weight, std=5.0)
    model.class_names = SEGMENTS
    model.input = Preprocess(size=64, longest=256, mode="fit", interpolation="bilinear")
    file = tmp_path_factory.mktemp("segmenter") / "best.safetensors"
    changes = [
        "data.options={size = 64, count = 3}",
        "data.image_size=64",
        "model.head_options.width=8",
        TINY,
    ]
    save(model, file, recipe=dump(load(find("shapes-seg"), changes)))
    return file


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    list(write_shapes(root, train=1, val=2, size=64))
    return root / "ade20k"


@pytest.fixture
def image(drawn):
    return drawn / "images" / "validation" / "ADE_val_00000001.jpg"


def rows(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_label_map_in_words_in_json_and_as_files(ask, segmenter, image, tmp_path):
    answer = ask(
        "predict", segmenter, image, "--json", "--save-maps", tmp_path / "m", "--draw", tmp_path / "d"
    )
    assert answer.code == 0
    (row,) = rows(answer.out)
    assert (row["height"], row["width"]) == (64, 64)
    assert sum(c["share"] for c in row["classes"]) == pytest.approx(1, abs=1e-4)
    model = load_model(segmenter).eval()
    x = model.preprocess(decode(image))
    (want,) = model.segment(x[None], [(64, 64)])
    with Image.open(tmp_path / "m" / "ADE_val_00000001.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), want)
    assert (tmp_path / "d" / "ADE_val_00000001.png").is_file()
    assert answer.err == f"Drew 1 images into {tmp_path}/d.\nWrote 1 label maps into {tmp_path}/m.\n"
    table = ask("predict", segmenter, image)
    assert f"{row['classes'][0]['class']}  {100 * row['classes'][0]['share']:.1f} %" in table.out


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (["--window", 48], {"window": 48}),
        (["--window", 48, "--stride", 8], {"window": 48, "stride": 8}),
        (["--scales", "1,1.5"], {"scales": (1.0, 1.5)}),
        (["--flip"], {"flip": True}),
    ],
)
def test_each_option_of_inference_reaches_the_model(ask, segmenter, image, tmp_path, options, how):
    answer = ask("predict", segmenter, image, "--save-maps", tmp_path, *options)
    assert answer.code == 0, answer.err
    model = load_model(segmenter).eval()

    def answer_of(**how):
        inputs = [scaled(model.input, scale) for scale in how.get("scales", (1.0,))]
        images = [preprocess(decode(image), spec)[None] for spec in inputs]  # each from the original
        return segment(model, images, [(64, 64)], Inference(**how))[0]

    want = answer_of(**how)
    with Image.open(tmp_path / "ADE_val_00000001.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), want)
    others = [{}, {"window": 48}, {"window": 48, "stride": 8}, {"scales": (1.0, 1.5)}, {"flip": True}]
    for other in others:  # so that none can stand for another
        if other != how:
            assert not torch.equal(answer_of(**other), want)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--window", 8], "window is a side from 32 pixels up; got 8."),
        (["--stride", 8], "stride is the distance between windows: window is needed too."),
        (["--scales", "1,a"], "--scales takes numbers with commas between them; got '1,a'."),
        (["--scales", "0"], "scales are factors above 0 and at most 8; got [0.0]."),
        (["--topk", 3], "--topk is for classifiers; {segmenter} is a segmenter."),
    ],
)
def test_options_that_cannot_be(ask, segmenter, image, arguments, text):
    answer = ask("predict", segmenter, image, *arguments)
    assert (answer.code, answer.out, answer.err) == (
        2,
        "",
        f"tetravit predict: {text.format(segmenter=segmenter)}\n",
    )


def test_a_classifier_makes_no_label_maps(ask, weights, image, tmp_path):
    answer = ask("predict", weights, image, "--save-maps", tmp_path)
    assert answer.err == f"tetravit predict: --save-maps is for segmenters; {weights} is a classifier.\n"
    answer = ask("predict", weights, image, "--scales", "0.5,1")
    assert answer.err == (f"tetravit predict: --scales is for segmenters; {weights} is a classifier.\n")
    table = ask("evaluate", weights, "--per-class").out
    assert "recall" in table
    assert "precision" in table


def test_scores_of_the_whole_set_and_of_each_class(ask, segmenter):
    answer = ask("evaluate", segmenter, "--per-class", "--json")
    assert answer.code == 0, answer.err
    (row,) = rows(answer.out)
    assert row["images"] == 3
    assert 0 <= row["miou"] <= row["aacc"] <= 1
    assert [c["class"] for c in row["classes"]] == list(SEGMENTS)
    known = [c["iou"] for c in row["classes"] if c["iou"] is not None]
    assert row["miou"] == pytest.approx(np.mean(known), abs=1e-5)
    table = ask("evaluate", segmenter, "--per-class")
    assert "IoU" in table.out
    assert "triangle" in table.out


def test_files_with_labels_that_are_no_class_are_named(ask, segmenter, drawn, tmp_path):
    root = tmp_path / "ade"
    shutil.copytree(drawn, root)
    file = root / "annotations" / "validation" / "ADE_val_00000002.png"
    labels = np.array(Image.open(file))
    labels[0, :7] = 99
    Image.fromarray(labels).save(file)
    answer = ask("evaluate", segmenter, "data.name=ade20k", f"data.root={root}", "--json")
    assert answer.code == 0, answer.err
    assert answer.err == (
        "tetravit evaluate: images/validation/ADE_val_00000002.jpg:"
        " 7 pixels have labels that are no class; they are left out.\n"
        "tetravit evaluate: 3 classes have nothing in the val images: 'circle', 'ring', 'triangle'.\n"
    )


@pytest.mark.slow
def test_a_damaged_label_map_stops_or_is_passed_over(ask, segmenter, drawn, tmp_path):
    root = tmp_path / "ade"
    shutil.copytree(drawn, root)
    file = root / "annotations" / "validation" / "ADE_val_00000002.png"
    Image.new("L", (60, 64)).save(file)
    place = ("data.name=ade20k", f"data.root={root}")
    cause = "it is 60 x 64 pixels, its image 64 x 64"
    answer = ask("evaluate", segmenter, *place)
    assert answer.err == f"tetravit evaluate: Cannot read image '{file}': {cause}.\n"
    answer = ask("evaluate", segmenter, *place, "data.on_bad=skip", "--json")
    assert f"tetravit evaluate: {file}: {cause}; skipped.\n" in answer.err
    assert rows(answer.out)[0]["images"] == 1


NARROW = ((1, 1), (1, 1000), (1000, 1))  # width, height


def test_narrow_images_get_label_maps_of_their_size(ask, segmenter, tmp_path):
    for size in NARROW:
        Image.new("RGB", size).save(tmp_path / "{}x{}.png".format(*size))
    maps, drawn = tmp_path / "maps", tmp_path / "drawn"
    files = sorted(tmp_path.glob("*.png"))
    answer = ask("predict", segmenter, *files, "--json", "--save-maps", maps, "--draw", drawn)
    assert answer.code == 0, answer.err
    found = {(row["width"], row["height"]) for row in rows(answer.out)}
    assert found == {Image.open(file).size for file in maps.iterdir()} == set(NARROW)
    assert all(max(Image.open(file).size) < 2800 for file in drawn.iterdir())


def test_narrow_images_are_scored(ask, segmenter, drawn, tmp_path):
    root = tmp_path / "ade"
    shutil.copytree(drawn, root)
    for size in NARROW:
        Image.new("RGB", size).save(root / "images/validation" / "{}x{}.png".format(*size))
        Image.new("L", size, 1).save(root / "annotations/validation" / "{}x{}.png".format(*size))
    answer = ask("evaluate", segmenter, "data.name=ade20k", f"data.root={root}", "--json")
    assert answer.code == 0, answer.err
    assert rows(answer.out)[0]["images"] == 5


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, 0.462),
        ({"windows_at_once": 2}, 0.462),
        ({"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True}, 0.471),
        ({"scales": (1.75, 1.5, 1.25, 1.0, 0.75, 0.5), "flip": True}, 0.471),
        ({"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}, None),
        ({"scales": (0.5, 1.0, 1.5), "flip": True}, None),
        ({"flip": True}, None),
        ({"window": 512}, None),
    ],
)
def test_the_published_figure_is_for_the_same_looks(options, value):
    row = CHECKPOINTS["twins_svt_small.ade20k_upernet"]
    found = references(row, "ade20k", MIoUConfig(**options))
    assert [(r.score, r.value, r.images) for r in found] == (
        [] if value is None else [("miou", pytest.approx(value), 2000)]
    )


def test_the_report_shows_predictions_beside_the_truth(tmp_path):
    """A run folder with two evaluations, one picture of each kind and a file with odd labels."""
    changes = ["data.options={size = 64, count = 3}", "data.image_size=64"]
    (tmp_path / "recipe.toml").write_text(dump(load(find("shapes-seg"), changes)))
    scores = [{"event": "evaluation", "step": s, "epoch": 1.0, "miou": s / 100} for s in (40, 80)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    shown = {"name": "a<b", "index": 1, "accuracy": 0.91, "map": encoded(torch.zeros(64, 64))}
    found = {"step": 80, "weights": "raw", "miou": 0.8, "macc": 0.85, "aacc": 0.96, "count": 3}
    found |= {"iou": [0.9, None, *[0.5] * 7], "accuracy": [0.95, None, *[0.6] * 7]}
    found |= {"pixels": [75, 0, *[5] * 5, 0, 0], "unknown": {"odd.png": 1234}}
    found |= {"pictures": {"first": [shown], "hardest": [shown]}, "class_names": SEGMENTS}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    html = write(tmp_path).read_text()
    for words in (
        "80.00 %",
        "Mean IoU",
        "Hardest images",
        "First images",
        "odd.png",
        "1,234",
        "a&lt;b",
        "Segment",
    ):
        assert words in html, words
    assert html.count("data:image/jpeg;base64,") == 6  # image, prediction, truth, twice
    assert (
        html.index("<td>ring<") < html.index("<td>ground<") < html.index("<td>circle<")
    )  # weakest, best, none
    assert f"steps={2 * load(find('shapes-seg')).steps}" in html  # the next to try
    assert "<script>alert" not in html
    (tmp_path / "evaluation.json").write_text(json.dumps({**found, "pictures": {}}))
    assert "Hardest" not in write(tmp_path).read_text()


@pytest.mark.slow
def test_weights_without_a_recipe_are_scored_on_ade20k(ask, segmenter, drawn, tmp_path):
    file = tmp_path / "plain.safetensors"
    save(load_model(segmenter), file)
    answer = ask("evaluate", file, "--json")
    assert answer.err == "tetravit evaluate: The data set 'ade20k' needs its root.\n"
    answer = ask("evaluate", file, f"data.root={drawn}", "--json")
    assert answer.code == 0, answer.err
    assert rows(answer.out)[0]["images"] == 2
    with_recipe = ask("evaluate", segmenter, "data.name=ade20k", f"data.root={drawn}", "--json")
    assert rows(with_recipe.out)[0]["miou"] == rows(answer.out)[0]["miou"]
