"""Standard error holds our lines alone while exporters and compilers work."""

import logging
import os
import subprocess
import sys

import pytest

from tetravit.models import create_model, save
from tetravit.runtimes.base import quiet


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("TETRAVIT_DEBUG", raising=False)


def chatter():
    os.write(2, b"native\n")
    print("printed", file=sys.stderr)
    handler = logging.StreamHandler()
    handler.emit(logging.LogRecord("torch.onnx", logging.WARNING, "", 0, "logged", None, None))


def test_chatter_is_held_back(capfd):
    with quiet():
        chatter()
    print("ours", file=sys.stderr)
    os.write(2, b"ours too\n")
    assert capfd.readouterr().err == "ours\nours too\n"


def fail():
    with quiet():
        chatter()
        raise ValueError("no")


def test_chatter_does_not_explain_a_full_disk(capfd):
    with pytest.raises(OSError), quiet():  # noqa: PT012
        chatter()
        raise OSError(28, "No space left on device")
    assert capfd.readouterr().err == ""


def test_chatter_is_shown_where_the_work_fails(capfd):
    with pytest.raises(ValueError, match="no"):
        fail()
    shown = capfd.readouterr().err
    assert [word for word in ("native", "printed", "logged") if word not in shown] == []


def test_chatter_is_shown_with_tetravit_debug(capfd, monkeypatch):
    monkeypatch.setenv("TETRAVIT_DEBUG", "1")
    with quiet():
        chatter()
    assert "native\nprinted\n" in capfd.readouterr().err


@pytest.mark.slow
def test_a_process_without_standard_error_is_served():
    code = "import os; os.close(2)\nfrom tetravit.runtimes.base import quiet\nwith quiet(): print('done')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "done\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("quiet") / "m.safetensors"
    save(create_model("xcit_nano_12_p16", num_classes=10, depth=1), file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.xml"])  # of the ONNX form, as .onnx is
def test_an_export_writes_our_lines_alone(weights, tmp_path, name):
    """On a real standard error, where log handlers and native code write past Python's redirections."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-m", "tetravit", "export", weights, "--to", tmp_path / name, "--size", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    steps = [
        "Tracing the model at 64 x 64 pixels ...",
        f"Writing {name} ...",
        "Measuring the speed of both ...",
    ]
    assert [line for line in lines if line.endswith(" ...") and "Comparing" not in line] == steps
    first, second = (line for line in lines if not line.endswith(" ..."))
    assert first.startswith(f"Wrote {tmp_path / name}")
    assert second.startswith("Compared on the two photographs of scikit-learn and 6 drawn scenes: ")


OPTIMIZE = """
import sys, tetravit
tetravit.optimize(tetravit.load(sys.argv[1]), backend="openvino")
"""


@pytest.mark.slow
def test_optimize_writes_nothing(weights):
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", OPTIMIZE, weights], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
