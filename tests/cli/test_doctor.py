"""`tetravit doctor`: what it shows of an installation, and the cure of one that does not fit together."""

import json

import pytest
from typer.testing import CliRunner

from tetravit import doctor
from tetravit.cli.app import application

FACTS = {
    "torch": "2.14.1",
    "threads": 2,
    "bf16": False,
    "devices": [],
    "built": "cpu",
    "torchvision": "works",
}


@pytest.fixture
def installed(monkeypatch):
    """Makes `tetravit doctor` see facts and versions of the test's own."""

    def install(facts=FACTS, **versions):
        monkeypatch.setattr(doctor, "run_probe", lambda: facts)
        known = {"torch": "2.14.1", "torchvision": "0.29.1", **versions}
        monkeypatch.setattr(doctor, "_version", lambda name: known.get(name, doctor.MISSING))

    return install


def call(*words):
    result = CliRunner().invoke(application(), ["doctor", *words])
    return result.exit_code, result.stdout, result.stderr


def test_an_installation_that_fits_has_no_problems(installed):
    installed()
    code, out, err = call("--json")
    rows = {row["item"]: row for row in map(json.loads, out.splitlines())}
    assert (code, err) == (0, "")
    assert rows["torch"]["value"] == "2.14.1 (CPU build)"
    assert rows["extra onnx"]["value"] == "not installed (pip install 'tetravit[onnx]')"
    assert rows["threads"]["value"].startswith("2")
    assert {"tetravit", "python", "system", "torchvision", "device", "cache"} <= rows.keys()


def test_a_torchvision_of_another_torch_is_named_with_the_command(installed):
    installed(torchvision="0.26.0")
    code, _, err = call()
    assert code == 1
    assert err.splitlines()[-1] == (
        "torchvision 0.26.0: made for torch 2.11, not for torch 2.14.1. Cure: pip install 'torchvision==0.29.*'"
    )


def test_operators_that_do_not_load_are_a_problem(installed):
    installed({**FACTS, "torchvision": "RuntimeError: operator torchvision::nms does not exist"})
    code, _, err = call()
    assert (code, err.splitlines()[-1]) == (
        1,
        "torchvision 0.29.1: RuntimeError: operator torchvision::nms does not exist."
        " Cure: pip install 'torchvision==0.29.*'",
    )


def test_a_torch_that_cannot_be_imported_is_a_line(installed):
    installed({"error": "ImportError: libcudart.so.13: cannot open shared object file"})
    code, _, err = call()
    assert code == 1
    assert "torch 2.14.1: ImportError: libcudart.so.13: cannot open shared object file." in err


def test_the_extras_are_those_of_the_package():
    assert {"coco", "onnx", "openvino", "hub", "timm"} <= doctor.extras().keys()
    assert "test" not in doctor.extras()


@pytest.mark.slow
def test_the_probe_runs_torch_in_a_process_of_its_own():
    facts = doctor.run_probe()
    assert facts["torchvision"] == "works"
    assert facts["threads"] >= 1
