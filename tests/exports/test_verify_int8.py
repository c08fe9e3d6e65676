"""verify-export of a file in int8: predictions, scores and speed again, or what was not repeated."""

from dataclasses import replace

import pytest
from PIL import Image
from tests.exports.test_exports import Copier, classifier
from tests.exports.test_exports import copier as copier  # a fixture

from tetravit.data.shapes import draw
from tetravit.exports import TARGETS, export, read_certificate, verify_export
from tetravit.exports.compare import Compared
from tetravit.exports.parts import int8, requantized
from tetravit.exports.parts.certificate import NOT_REPEATED, Certificate, Quantized, Score, Timed, place_of
from tetravit.models import save

SHAPE = (1, 3, 64, 64)
HELD, RATES = "equal on 4 images held out", "images/s in int8, bfloat16, float32"


@pytest.fixture
def folder(tmp_path):
    """Twelve drawings to calibrate with."""
    made = tmp_path / "images"
    made.mkdir()
    for i in range(12):
        Image.fromarray(draw(i, size=64).image).save(made / f"{i}.png")
    return made


@pytest.fixture
def model():
    return classifier()


@pytest.fixture
def file(model, copier, folder, tmp_path, monkeypatch):
    """A file that runs the model itself, with the certificate of one in int8."""
    monkeypatch.setattr("tetravit.exports.compare.SECONDS", 0)
    monkeypatch.setattr(requantized, "_timed", lambda *_: Timed(30.0, 20.0, 10.0, SHAPE))
    copier(lambda inputs: [model(inputs[0])])
    save(model, tmp_path / "w.safetensors")
    export(model, tmp_path / "m.copy", weights=tmp_path / "w.safetensors")
    images = int8.calibration_images(model, folder)
    quantized = Quantized(
        str(folder), images.text, images.digest, 4, 0.99, 0.25, Timed(5.0, 6.25, 6.5, SHAPE)
    )
    paper = read_certificate(place_of(tmp_path / "m.copy"))
    replace(paper, precision="int8", tolerance=1.0, quantized=quantized).save(place_of(tmp_path / "m.copy"))
    return tmp_path / "m.copy"


def run_of(monkeypatch, run):
    monkeypatch.setitem(TARGETS, "copy", Copier(run))


def table(checked):
    return {row.name: (row.certificate, row.here) for row in checked.rows}


def test_the_predictions_held_out_and_the_speed_are_repeated(file):
    paper = read_certificate(place_of(file))
    assert Certificate.from_json(paper.to_json()) == paper
    checked = verify_export(file)
    assert (checked.problem, checked.notes) == ("", ())
    rows = table(checked)
    assert rows[HELD] == ("99.00 %", "100.00 %")
    assert rows[RATES] == ("5, 6.25, 6.5", "30, 20, 10")
    assert NOT_REPEATED not in {row.here for row in checked.rows}


def test_other_predictions_are_a_problem_though_the_outputs_are_near(file, model, monkeypatch):
    run_of(monkeypatch, lambda inputs: [-model(inputs[0])])
    checked = verify_export(file)
    assert float(table(checked)["largest difference"][1]) < 1
    assert checked.problem == (
        f"{file} changes 100.0 % of the predictions for 4 images held out of calibration; the certificate allows 25 %"
    )


def test_a_slower_file_is_a_note(file, monkeypatch):
    monkeypatch.setattr(requantized, "_timed", lambda *_: Timed(10.0, 20.0, 30.0, SHAPE))
    checked = verify_export(file)
    assert checked.problem == ""
    assert checked.notes == (
        "int8 is not faster than float32 on this machine: 10 and 30 images/s at 64x64, batch 1.",
    )


@pytest.mark.slow
def test_images_that_are_not_here_are_not_compared(file, folder):
    folder.rename(folder.with_name("moved"))
    checked = verify_export(file)
    assert checked.problem == ""
    assert table(checked)[HELD] == ("99.00 %", NOT_REPEATED)
    assert checked.notes == (
        f"The images that the file was calibrated on, 12 images of the folder {folder}, are not here: --calibrate"
        " DATA.",
    )
    assert table(verify_export(file, calibrate=folder.with_name("moved")))[HELD] == ("99.00 %", "100.00 %")


@pytest.mark.slow
def test_other_images(file, folder):
    (folder / "0.png").unlink()
    checked = verify_export(file)
    assert table(checked)[HELD][1] == NOT_REPEATED
    with pytest.raises(ValueError) as caught:
        verify_export(file, calibrate=folder)
    then = read_certificate(place_of(file)).quantized.digest[:12]
    now = int8.calibration_images(classifier(), folder).digest[:12]
    text = (
        f"{folder} holds other images than the file was calibrated on: SHA-256 {now}..., in the"
        f" certificate {then}...."
    )
    assert str(caught.value) == text
    assert checked.notes == (text,)


def test_a_model_that_cannot_be_exported_again_is_a_note(file, monkeypatch):
    def fail(*_):
        raise ValueError("It is not possible.")

    monkeypatch.setattr(requantized, "_timed", fail)
    checked = verify_export(file)
    assert table(checked)[RATES] == ("5, 6.25, 6.5", NOT_REPEATED)
    assert checked.notes == ("The speed in bfloat16 and float32 is not repeated: It is not possible.",)


def test_without_weights_the_recorded_outputs_decide(file, model, monkeypatch, tmp_path):
    (tmp_path / "w.safetensors").unlink()
    checked = verify_export(file)
    assert checked.problem == ""
    skipped = [row.name for row in checked.rows if row.here == NOT_REPEATED]
    assert skipped == ["equal top-1", "times the model's images/s", HELD, RATES]
    run_of(monkeypatch, lambda inputs: [model(inputs[0]) + 0.5])
    assert verify_export(file).problem.endswith("; 0.1 is allowed")
    with pytest.raises(ValueError) as caught:
        verify_export(file, calibrate="digits")
    assert str(caught.value) == (
        "--calibrate compares with the model, whose weights are not here: give them with --weights FILE."
    )


def test_images_to_calibrate_belong_to_int8(file):
    paper = read_certificate(place_of(file))
    replace(paper, precision="float32", quantized=None).save(place_of(file))
    with pytest.raises(ValueError) as caught:
        verify_export(file, calibrate="digits")
    assert str(caught.value) == f"--calibrate goes with int8; {file} computes in float32."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        (
            {"difference": 0.5},
            "m.xml differs more from the model than where it was written: by 5.0e-01 of the largest output at 1 x 64"
            " x 64, there by 1.0e-01",
        ),
        (
            {"equal": {"top-1": 0.8}},
            "m.xml predicts otherwise than where it was written: 80.00 % of top-1 are equal to the model's, there"
            " 100.00 %",
        ),
        (
            {"scores": {"top1": Score(0.9, 0.8)}},
            "m.xml scores lower than where it was written: top1 80.00 %, there 89.00 %",
        ),
    ],
    ids=["same", "outputs", "predictions", "scores"],
)
def test_a_file_that_predicts_worse_here(file, changes, text):
    shapes = ((8, 3, 64, 64), (2, 3, 64, 64))
    given = {"difference": 0.1, "equal": {"top-1": 0.95}, "scores": {"top1": Score(0.9, 0.86)}} | changes
    paper = read_certificate(place_of(file))
    then = replace(
        paper,
        difference=0.1,
        equal={"top-1": 1.0},
        scores={"top1": Score(0.9, 0.89)},
        scored=100,
        shapes=shapes,
    )
    then = replace(then, quantized=replace(paper.quantized, max_drop=0.05))
    compared = Compared(given["difference"], "1 x 64 x 64", shapes, None, equal=given["equal"])
    assert requantized.worse("m.xml", then, compared, given["scores"], 100) == text
