"""The certificate of an exported file: what it holds, and what checking it again says."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
from tests.exports.test_exports import Copier, classifier, detector, found
from tests.exports.test_exports import copier as copier  # a fixture

from tetravit.exports import TARGETS, export, read_certificate, verify_export
from tetravit.exports.compare import (
    batches_of,
    compare,
    compare_recorded,
    matches,
    record,
)
from tetravit.exports.parts.certificate import Certificate, place_of, sha256_of, weights_digest
from tetravit.exports.parts.pictures import gather, usual
from tetravit.models import create_model, save
from tetravit.models.portable import flat
from tetravit.recipe import dump, find, load
from tetravit.structures import Preprocess
from tetravit.weights.fileformat import read_header


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("tetravit.exports.compare.SECONDS", 0)


@pytest.fixture
def model():
    return classifier()


@pytest.fixture
def written(model, copier, tmp_path):
    """A model exported by a format that runs the model itself."""
    copier(lambda inputs: [model(inputs[0])])
    save(model, tmp_path / "w.safetensors")
    return export(model, tmp_path / "m.copy", weights=tmp_path / "w.safetensors")


def test_a_certificate_holds_what_was_compared(written, model, tmp_path):
    paper = read_certificate(tmp_path / "m.copy.certificate.json")
    assert paper == written.certificate
    assert (paper.target, paper.precision, paper.task) == ("copy", "float32", "classify")
    assert paper.model == "xcit_nano_12_p16"
    assert paper.files == {name: sha256_of(tmp_path / name) for name in ("m.copy", "m.more")}
    assert list(paper.files) == ["m.copy", "m.more"]
    assert paper.weights == weights_digest(model)
    assert {"python", "tetravit", "torch"} <= set(paper.versions)
    assert paper.processor
    assert paper.image_source == "photographs"
    assert paper.images == "the two photographs of scikit-learn and 6 drawn scenes"
    assert {shape[0] for shape in paper.shapes} == {1, 3}
    assert len({shape[2:] for shape in paper.shapes}) == 2
    (output,) = paper.outputs
    assert (output.name, output.largest) == ("logits", 0.0)
    assert paper.equal == {"top-1": 1.0}
    assert paper.scores == {}
    assert paper.unscored == "no labelled images are known"
    assert paper.speed.shape == (1, 3, 64, 64)
    assert 0.2 < paper.speed.ratio < 5


def test_the_digest_of_weights_is_that_of_their_file(model, tmp_path):
    save(model, tmp_path / "w.safetensors")
    assert read_header(tmp_path / "w.safetensors").fingerprint == weights_digest(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert read_header(tmp_path / "w.safetensors").fingerprint != weights_digest(model)


def test_text_and_back(written):
    paper = written.certificate
    assert Certificate.from_json(paper.to_json()) == paper
    table = json.loads(paper.to_json())
    assert table["weights_order"].endswith("in the order of the names")
    del table["speed"]
    with pytest.raises(ValueError, match="other fields"):
        Certificate.from_json(json.dumps(table))


def test_without_scikit_learn_scenes_are_drawn_alone(model, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else real(name))
    pictures = usual(model)
    assert (pictures.source, pictures.text) == ("drawings", "6 drawn scenes")
    assert pictures.notes == ("The photographs of scikit-learn are not installed: pip install scikit-learn",)
    assert pictures.pictures[0](64, 96).shape == (3, 64, 96)


def test_images_of_a_folder(model, tmp_path):
    from PIL import Image

    for i in range(40):
        Image.new("RGB", (50, 40), (i, 2 * i, 3 * i)).save(tmp_path / f"{i:02}.png")
    pictures = gather(model, tmp_path)
    assert pictures.text == f"32 images of the folder {tmp_path}"
    batches = list(batches_of(model, pictures.pictures, (64, 64)))
    assert sum(map(len, batches)) == 32
    assert [tuple(x.shape) for x in batches[:4]] == [
        *((n, 3, 64, 64) for n in (1, 3)),
        *((n, 3, 91, 125) for n in (1, 3)),
    ]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (False, "--images takes a folder of images; there is no folder '{0}/none'."),
        (True, "There are no images in the folder '{0}/none'."),
    ],
)
def test_a_folder_without_images(model, copier, tmp_path, make, text):
    copier(lambda inputs: [model(inputs[0])])
    if make:
        (tmp_path / "none").mkdir()
    with pytest.raises(ValueError) as caught:
        export(model, tmp_path / "m.copy", images=tmp_path / "none")
    assert str(caught.value) == text.format(tmp_path)


def digits(folder, *changes):
    """A model whose weights, best.safetensors, hold the recipe of a run on a tenth of digits."""
    model = create_model("xcit_nano_12_p16", num_classes=10, depth=1).eval()
    model.class_names, model.input = tuple("0123456789"), Preprocess(size=32, crop=1.0)
    recipe = load(find("digits"), ["data.options={fraction = 0.1}", *changes])
    save(model, folder / "best.safetensors", recipe=dump(recipe))
    return model


@pytest.mark.slow
def test_scores_on_the_validation_set_of_the_run(copier, monkeypatch, tmp_path):
    model = digits(tmp_path)
    monkeypatch.setattr(sys.modules["tetravit.exports.export"], "_graph", lambda *_, **__: Facts(model))
    copier_of(monkeypatch, lambda inputs: [model(inputs[0])])
    done = export(model, tmp_path / "m.copy", weights=tmp_path / "best.safetensors", score_images=20)
    paper = done.certificate
    assert paper.image_source == "validation"
    assert paper.images == "32 images of the validation set of the run (digits)"
    assert paper.scored == 20
    assert paper.scores["top1"].before == paper.scores["top1"].after
    checked = verify_export(tmp_path / "m.copy")
    assert checked.problem == ""
    assert [row.name for row in checked.rows] == [
        *("torch", "images", "largest difference", "logits: largest, mean", "equal top-1"),
        *("top1 before, after", "times the model's images/s"),
    ]


class Facts:
    """In the place of a graph."""

    def __init__(self, model):
        self.facts = {"outputs": ["logits"], "sides": [32, 4096], "multiple": 1, "made_for": [32, 32]}
        self.facts |= model.facts()


def copier_of(monkeypatch, run):
    target = Copier(run)
    monkeypatch.setitem(TARGETS, "copy", target)
    return target


def test_a_validation_set_that_is_elsewhere_is_named(tmp_path):
    digits(tmp_path, "data.name=image_folder", "data.root=/nowhere", "data.options={}")
    pictures = gather(classifier(), weights=tmp_path / "best.safetensors")
    assert pictures.source == "photographs"
    (note,) = pictures.notes
    assert note.startswith("The validation set of the run is not available: ")
    assert "/nowhere" in note


def test_a_file_is_verified_with_the_weights_of_its_certificate(written, tmp_path):
    checked = verify_export(tmp_path / "m.copy")
    assert (checked.problem, checked.notes) == ("", ())
    assert checked.weights == f"{tmp_path}/w.safetensors"
    rows = {row.name: row for row in checked.rows}
    assert rows["equal top-1"].certificate == rows["equal top-1"].here == "100.00 %"
    assert rows["logits: largest, mean"].here == "0.0e+00, 0.0e+00"


def test_without_weights_the_recorded_outputs_are_compared(written, model, monkeypatch, tmp_path):
    (tmp_path / "w.safetensors").unlink()
    checked = verify_export(tmp_path / "m.copy")
    assert checked.problem == ""
    assert checked.weights == ""
    assert checked.notes == (
        f"The weights {tmp_path}/w.safetensors are not here: compared with the outputs in the certificate.",
    )
    copier_of(monkeypatch, lambda inputs: [model(inputs[0]) + 0.01])
    problem = verify_export(tmp_path / "m.copy").problem
    assert problem.startswith(f"{tmp_path}/m.copy gives other outputs here than where it was written: they")
    assert problem.endswith(" of the largest; 0.0002 is allowed")
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.copy", images=tmp_path)
    assert str(caught.value) == (
        "--images compares with the model, whose weights are not here: give them with --weights FILE."
    )


def test_a_file_that_differs_here(written, model, monkeypatch, tmp_path):
    copier_of(monkeypatch, lambda inputs: [model(inputs[0]) + 0.01])
    checked = verify_export(tmp_path / "m.copy")
    assert checked.problem.startswith(f"{tmp_path}/m.copy differs from the model: by ")
    assert checked.problem.endswith("; the certificate allows 2e-05")


def test_a_renamed_file_is_the_same_file(written, tmp_path):
    for name in ("copy", "more", "copy.certificate.json"):
        (tmp_path / f"m.{name}").rename(tmp_path / f"n.{name}")
    assert verify_export(tmp_path / "n.copy").problem == ""


def test_an_edited_file(written, tmp_path):
    (tmp_path / "m.more").write_text("edited")
    now, then = sha256_of(tmp_path / "m.more"), written.certificate.files["m.more"]
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.copy")
    assert str(caught.value) == (
        f"{tmp_path}/m.more was changed after its certificate was written: its SHA-256 begins with {now[:12]},"
        f" that in {tmp_path}/m.copy.certificate.json with {then[:12]}."
    )


def test_the_certificate_of_another_file(written, tmp_path):
    (tmp_path / "n.copy").write_text("other")
    (tmp_path / "n.more").write_text("other")
    now, then = sha256_of(tmp_path / "n.copy"), written.certificate.files["m.copy"]
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "n.copy", certificate=place_of(tmp_path / "m.copy"))
    assert str(caught.value) == (
        f"{tmp_path}/m.copy.certificate.json is the certificate of another file: of m.copy (SHA-256"
        f" {then[:12]}...), not of {tmp_path}/n.copy ({now[:12]}...)."
    )


def test_a_file_that_is_missing(written, tmp_path):
    (tmp_path / "m.more").unlink()
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.copy")
    assert str(caught.value) == (
        f"There is no file {tmp_path}/m.more, which {tmp_path}/m.copy.certificate.json is about."
    )


def test_other_weights(written, model, tmp_path):
    was = weights_digest(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save(model, tmp_path / "v.safetensors")
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.copy", weights=tmp_path / "v.safetensors")
    assert str(caught.value) == (
        f"{tmp_path}/v.safetensors holds other weights than the file was exported from: SHA-256"
        f" {weights_digest(model)[:12]}..., in the certificate {was[:12]}...."
    )


def test_a_missing_runtime(written, monkeypatch, tmp_path):
    target = copier_of(monkeypatch, None)
    monkeypatch.setattr(
        target, "ready", lambda: "it needs the extra: pip install 'tetravit[copy]'", raising=False
    )
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.copy")
    assert str(caught.value) == (
        f"{tmp_path}/m.copy cannot be run here: it needs the extra: pip install 'tetravit[copy]'."
    )


def test_a_file_of_code_is_run_where_its_source_is_trusted(written, monkeypatch, tmp_path):
    monkeypatch.setattr(Copier, "runs_code", "it is native code")
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.copy")
    assert str(caught.value) == (
        f"{tmp_path}/m.copy can execute arbitrary code, because it is native code: run it with --trust"
        " (in Python trust=True) only if you trust its source."
    )
    assert verify_export(tmp_path / "m.copy", trust=True).problem == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no certificate {0}: `tetravit export` writes it beside the file."),
        ("[1]", "{0} is no certificate, or damaged."),
        ("{", "{0} is no certificate, or damaged."),
        ('{"format": 1}', "{0} is no certificate, or damaged."),
        (
            '{"format": 2}',
            "{0} has format 2; this version of tetravit reads certificates of format 1.",
        ),
    ],
    ids=["none", "list", "cut", "empty", "newer"],
)
def test_no_certificate(tmp_path, text, message):
    paper = tmp_path / "m.onnx.certificate.json"
    (tmp_path / "m.onnx").write_text("")
    if text is not None:
        paper.write_text(text)
    with pytest.raises(ValueError) as caught:
        verify_export(tmp_path / "m.onnx")
    assert str(caught.value) == message.format(paper)


def test_an_existing_certificate_is_not_overwritten(model, copier, tmp_path):
    copier(lambda inputs: [model(inputs[0])])
    (tmp_path / "m.copy.certificate.json").write_text("precious")
    with pytest.raises(ValueError) as caught:
        export(model, tmp_path / "m.copy")
    assert str(caught.value) == (
        f"{tmp_path}/m.copy.certificate.json is there already; --force, in Python existing='replace', writes over it."
    )


def whole(**changes):
    """The detections of one image, padding left out."""
    return {name: x[0][:2] for name, x in found(**changes).items()}


def test_detections_match_where_class_and_place_agree():
    assert matches(whole(), whole()) == [(0, 0), (1, 1)]
    assert matches(whole(labels=torch.tensor([[1, 1, 0]])), whole()) == [(0, 0)]
    far = found()["boxes"].clone()
    far[0, 1] += 30
    assert matches(whole(boxes=far), whole()) == [(0, 0)]
    assert matches({name: x[:0] for name, x in whole().items()}, whole()) == []
    swapped = {name: x.flip(0) for name, x in whole().items()}
    assert matches(swapped, whole()) == [(1, 0), (0, 1)]


@pytest.mark.slow
def test_detectors_are_compared_object_by_object(tmp_path):
    model = detector("retinanet")
    pictures = usual(model).pictures[:2]

    def run(inputs):
        with torch.no_grad():
            outputs = model(*inputs)
        outputs["valid"] = outputs["valid"].clone()
        outputs["valid"][:, 0] = False  # the best object of each image is lost
        return flat(outputs)

    batches = list(batches_of(model, pictures, (160, 160)))[:1]
    strict = compare(model, run, batches)
    assert strict.difference == float("inf")
    loose = compare(model, run, batches, "matched")
    assert loose.difference == 0
    assert loose.matched == loose.equal["detections"] == pytest.approx(1 - 1 / strict.objects)
    assert [row.name for row in loose.outputs] == ["boxes", "scores"]


@pytest.mark.slow
def test_recorded_detections():
    model = detector("retinanet")

    def run(inputs):
        with torch.no_grad():
            return flat(model(*inputs))

    recorded = record(run, model.output_names, (160, 160), model.input.mean, model.input.std)
    assert len(recorded.values["detections"][0]) == 10
    assert compare_recorded(recorded, model.output_names, run) < 1e-6
    assert recorded.shape == (2, 3, 160, 160)

    def moved(inputs):
        boxes, *others = run(inputs)
        return (boxes + 1, *others)

    assert compare_recorded(recorded, model.output_names, moved) > 1e-3
    assert compare_recorded(replace(recorded, values={"detections": [[], []]}), model.output_names, run) == 0
