"""Studies of published weights on data sets: rows beside the catalogue's figures, parts, refusals, small forms."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tetravit.cli.app import application
from tetravit.protocols.references import references
from tetravit.runs.evaluate import Result
from tetravit.studies import STUDIES, robustness
from tetravit.weights import CHECKPOINTS


def call(*words):
    result = CliRunner().invoke(application(), ["study", *words, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def rows(*words):
    code, out, err = call(*words, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def measured(monkeypatch):
    """Evaluations that return these scores; the calls that were made."""
    calls = []

    def arrange(scores, *, fair=True, count=10_000):
        def evaluate(weights, overrides, *, images, device, prepare=None):
            calls.append((weights, list(overrides), images))
            data = next((o.partition("=")[2] for o in overrides if o.startswith("data.name")), None)
            data = data or {"detect": "coco", "segment": "ade20k"}.get(CHECKPOINTS[weights].task, "imagenet")
            known = references(CHECKPOINTS[weights], data) if fair else ()
            return Result(weights, data, "val", images or count, scores, 1.0, device, references=known)

        monkeypatch.setattr("tetravit.runs.evaluate.evaluate", evaluate)
        return calls

    return arrange


@pytest.mark.slow
def test_top_1_on_another_test_set(measured, tmp_path):
    calls = measured({"top1": 0.711})
    words = (
        "robustness",
        "--weights",
        "xcit_small_12_p16.in1k",
        "--v2",
        "/v2",
        "--into",
        str(tmp_path / "r.jsonl"),
    )
    (row,) = rows(*words)
    assert (row["got"], row["expected"], row["verdict"], row["by"]) == (
        71.1,
        71.09,
        "within 0.1",
        "timm results",
    )
    assert calls == [("xcit_small_12_p16.in1k", ["data.name=imagenet_v2", "data.root=/v2"], None)]
    assert rows(*words) == [row]
    assert len(calls) == 1  # the row is kept
    (part,) = rows(*words, "--images", "400")
    assert part["verdict"] == "within 4.63"  # 0.1 and two standard errors


def test_all_sets_and_the_labels_of_real(measured):
    calls = measured({"top1": 0.8})
    found = rows(
        *(
            "robustness",
            "--weights",
            "convit_tiny.in1k,twins_svt_small.in1k",
            "--imagenet",
            "/i",
            "--real",
            "/r.json",
        ),
        *("--a", "/a", "--r", "/r", "--sketch", "/s"),
    )
    assert [row["data"] for row in found[:5]] == [
        "imagenet", "imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_real",
    ]  # fmt: skip
    assert calls[4][1] == ["data.name=imagenet_real", "data.root=/i", "data.options.labels=/r.json"]
    assert found[1]["expected"] == 8.707
    assert (found[6]["expected"], found[6]["verdict"]) == (None, "no published figure")  # Twins on -A


@pytest.mark.slow
def test_two_scores_of_a_detector_and_a_part_without_a_verdict(measured):
    measured({"box_ap": 0.427, "mask_ap": 0.3}, count=5_000)
    words = ("coco", "--weights", "xcit_tiny_12_p16.coco_mask_rcnn", "--data-root", "/coco")
    box, mask = rows(*words)
    assert (box["score"], box["verdict"]) == ("box_ap", "within 0.2")
    assert (mask["expected"], mask["verdict"]) == (38.5, "outside 0.2")
    box, _ = rows(*words, "--images", "50")
    assert box["verdict"] == "protocol differs: 50 of 5,000 images"


def test_a_segmenter_and_images_prepared_otherwise(measured):
    measured({"miou": 0.46}, fair=False, count=2_000)
    (row,) = rows("ade20k", "--weights", "twins_svt_small.ade20k_upernet", "--data-root", "/ade")
    assert (row["expected"], row["verdict"]) == (46.2, "protocol differs: images prepared otherwise")


@pytest.mark.slow
def test_nearest_neighbours_of_some_training_images(measured):
    calls = measured({"knn_20": 0.76}, count=50_000)
    words = ("xcit-dino", "--weights", "xcit_small_12_p16.dino", "--data-root", "/i")
    (row,) = rows(*words)
    assert (row["got"], row["expected"], row["verdict"]) == (76.0, 76.0, "within 0.1")
    (row,) = rows(*words, "--images-per-class", "100")
    assert row["verdict"] == "protocol differs: 100 training images a class"
    assert calls[1][1] == ["data.root=/i", "evaluate.protocol=knn", "evaluate.images_per_class=100"]
    measured({"linear": 0.778}, count=50_000)
    (row,) = rows(*words, "--protocol", "linear")
    assert (row["score"], row["verdict"]) == ("linear", "within 0.2")
    assert calls[2][1][-1] == "evaluate.features=augmented"


def test_the_weights_of_each_study_are_in_the_catalogue():
    assert {len(STUDIES[name].weights) for name in ("coco", "ade20k", "xcit-dino")} == {8, 22, 4}
    for name in ("coco", "ade20k", "xcit-dino", "robustness"):
        assert all(weights in CHECKPOINTS for weights in STUDIES[name].weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["robustness"],
            "The study needs a test set: --v2, --a, --r, --sketch or --imagenet DIR, or --small.",
        ),
        (["robustness", "--real", "x"], "ReaL has labels alone: --real FILE goes with --imagenet DIR."),
        (
            ["robustness", "--v2", "x", "--weights", "convit_smal.in1k"],
            "The study is about published weights; got 'convit_smal.in1k'. Did you mean 'convit_small.in1k'?",
        ),
        (["coco"], "The study needs COCO 2017: --data-root DIR, or --small."),
        (["ade20k"], "The study needs ADE20K: --data-root DIR, or --small."),
        (["xcit-dino"], "The study needs ImageNet, its training images too: --data-root DIR, or --small."),
        (["xcit-dino", "--protocol", "svm"], "--protocol is knn or linear; got 'svm'."),
        (
            ["twins-deploy", "--batches", "1,x"],
            "--batches takes counts from 1 up with commas between them; got '1,x'.",
        ),
    ],
)
def test_what_is_refused(words, message):
    code, _, err = call(*words)
    assert (code, err.splitlines()[-1]) == (2, f"tetravit study {words[0]}: {message}")


def test_images_are_changed_as_named():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(robustness.change(images, "as they are"), images)
    assert torch.equal(robustness.change(images, "shifted")[..., 4:], images[..., :-4])
    contrast = robustness.change(images, "low contrast")
    torch.testing.assert_close(contrast.mean(dim=(2, 3)), images.mean(dim=(2, 3)))
    torch.testing.assert_close(contrast.std(), 0.3 * images.std(), rtol=0.02, atol=0)
    noise = robustness.change(images, "noise") - images
    assert 0.45 < noise.std() < 0.55
    assert torch.equal(robustness.change(images, "noise"), images + noise)
    assert robustness.change(images, "blur").std() < 0.5


def test_speed_over_pytorch():
    from tetravit.studies.twins_deploy import _ratio

    speeds = {"eager": 4.0, "openvino": 6.0}
    assert (_ratio(speeds, "openvino")["got"], _ratio(speeds, "eager")["got"]) == (1.5, 1.0)
    assert _ratio(speeds, "compile")["verdict"] == "not run"
