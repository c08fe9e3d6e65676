"""export: a file that answers as the model does, and says so."""

import json
import os

import pytest
import torch

from tetravit.cli.base import announcing
from tetravit.cli.export import _licence
from tetravit.exports import Exported
from tetravit.models import create_model, save
from tetravit.runtimes.base import quiet


@pytest.mark.slow
def test_weights_become_a_program(ask, weights, tmp_path):
    options = ("--size", "64x96", "--optimize", "--score-images", "10", "--json")
    answer = ask("export", weights, "--to", tmp_path / "m.pt2", *options)
    assert (answer.code, answer.err) == (0, "")
    row = json.loads(answer.out)
    assert row["certificate"]["weights_source"] == str(weights)
    assert row["certificate"]["image_source"] == "validation"
    assert set(row["certificate"]["scores"]) == {"top1"}
    checked = ask("verify-export", tmp_path / "m.pt2", "--trust")
    last = f"{tmp_path}/m.pt2 is the file of its certificate and agrees with the weights {weights}."
    assert (checked.code, checked.err.splitlines()) == (0, [last])
    assert row["files"] == [f"{tmp_path}/m.pt2"]
    assert row["difference"] < 2e-5
    assert row["shapes"][0] == [1, 3, 64, 96]
    extra = {"tetravit.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert program(torch.zeros(2, 3, 80, 80))[0].shape == (2, 10)
    facts = json.loads(extra["tetravit.json"])
    assert facts["class_names"] == [str(i) for i in range(10)]
    assert facts["folded"] is True
    again = ask("export", weights, "--to", tmp_path / "m.pt2")
    assert (again.code, again.err) == (
        2,
        f"tetravit export: {tmp_path}/m.pt2 and {tmp_path}/m.pt2.certificate.json are there already;"
        " --force, in Python existing='replace', writes over them.\n",
    )


@pytest.mark.nightly
def test_random_weights_are_told(ask, tmp_path):
    answer = ask("export", "xcit_nano_12_p16", "--to", tmp_path / "m.pt2", "--size", "64")
    assert answer.code == 0
    first, second, third = (line for line in answer.err.splitlines() if not line.endswith(" ..."))
    assert first == (
        "xcit_nano_12_p16 has no weights: they are random."
        " `tetravit list weights 'xcit_nano_12_p16.*'` shows published ones."
    )
    assert second.startswith(f"Wrote {tmp_path}/m.pt2 (torch, float32, ")
    assert second.endswith("over 4 batches of 2 sizes.")
    assert third.startswith(
        "Compared on the two photographs of scikit-learn and 6 drawn scenes: 100 % of top-1 equal"
    )
    assert third.endswith(" times the images/s of the plain model.")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.safetensors", "{0}/a.safetensors"),
        ("best.safetensors", "{0}"),
        ("model.safetensors", "{0}"),
        ("model.safetensors", "hf:owner/name"),
        ("weights/xcit_nano_12_p16.mine.safetensors", "xcit_nano_12_p16.mine"),
    ],
    ids=["file", "run", "folder", "hub", "import"],
)
def test_the_licence_is_known_wherever_the_weights_are(tmp_path, monkeypatch, file, name):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.setattr("tetravit.weights.hub.fetch", lambda _: tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    save(create_model("xcit_nano_12_p16", num_classes=2, depth=1), tmp_path / file, licence="CC0-1.0")
    assert _licence(name.format(tmp_path), False) == "CC0-1.0"


@pytest.mark.parametrize(("count", "last"), [(0, True), (3, False)])
def test_a_detector_that_finds_nothing_is_told(ask, weights, tmp_path, monkeypatch, count, last):
    shapes = ((1, 3, 160, 160), (1, 3, 192, 224))
    done = Exported((tmp_path / "m.pt2",), "torch", "float32", 2**20, 0.0, shapes, count)
    monkeypatch.setattr("tetravit.exports.export", lambda *_, **__: done)
    answer = ask("export", weights, "--to", tmp_path / "m.pt2")
    first, *others = answer.err.splitlines()
    assert first.endswith(f"over 2 batches of 2 sizes, {count} objects in them.")
    said = ["The model detected no object in the test images, so no box was compared."]
    assert others == (said if last else [])


def test_steps_are_announced_while_standard_error_is_redirected(capfd, monkeypatch):
    """Of the batches of a comparison, one every two seconds."""
    for apart, lines in ((60.0, 2), (0.0, 3)):
        monkeypatch.setattr("tetravit.cli.base.APART", apart)
        with announcing() as announce, quiet():
            for line in (
                "Writing m.onnx",
                "Comparing with the model: 1 x 64 x 64",
                "Comparing with the model: 3 x 9",
            ):
                announce(line)
            os.write(2, b"native\n")
        shown = [
            "Writing m.onnx ...",
            "Comparing with the model: 1 x 64 x 64 ...",
            "Comparing with the model: 3 x 9 ...",
        ]
        assert capfd.readouterr().err.splitlines() == shown[:lines]


@pytest.mark.parametrize("option", ["", "--json"])
def test_steps_are_shown_but_for_json(ask, weights, tmp_path, monkeypatch, option):
    def write(*_, announce, **__):
        announce("Tracing the model at 64 x 64 pixels")
        return Exported((tmp_path / "m.pt2",), "torch", "float32", 2**20, 0.0, ((1, 3, 64, 64),), None)

    monkeypatch.setattr("tetravit.exports.export", write)
    answer = ask("export", weights, "--to", tmp_path / "m.pt2", *filter(None, [option]))
    first, *others = answer.err.splitlines() or [""]
    assert first == ("" if option else "Tracing the model at 64 x 64 pixels ...")
    assert len(others) == (0 if option else 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--to", "m.onx"],
            "The ending of a file says its format: .onnx (onnx), .pt2 (torch), .xml (openvino); got 'm.onx'.",
        ),
        (["--to", "m.onnx", "--format", "onxx"], "Unknown format 'onxx'. Did you mean 'onnx'?"),
        (["--to", "nowhere/m.onnx"], "There is no folder 'nowhere'."),
        (
            ["--to", "m.pt2", "--size", "a4"],
            "--size takes a side in pixels, or height x width as in 480x640; got 'a4'.",
        ),
        (
            ["--to", "m.pt2", "--dtype", "int8"],
            "dtype takes one of float32, float16, bfloat16 for torch; got 'int8'.",
        ),
        (["--to", "no/site", "--format", "web"], "There is no folder 'no'."),
        (
            ["--to", "m.pt2", "--runtime", "x"],
            "The format 'torch' has no setting 'runtime'.",
        ),
        (
            ["--to", "m.xml", "--calibrate", "digits"],
            "calibrate, --calibrate, goes with int8; got dtype 'float32'.",
        ),
    ],
    ids=["ending", "format", "folder", "size", "dtype", "page", "setting", "calibrate"],
)
def test_mistakes(ask, weights, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    answer = ask("export", weights, *arguments)
    assert (answer.code, answer.out, answer.err) == (2, "", f"tetravit export: {text}\n")
    assert list(tmp_path.iterdir()) == []
