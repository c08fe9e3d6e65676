"""benchmarks/gpu.py can be run: rehearsed on a processor, refused where there is no GPU."""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tetravit.benchmark.against import Contest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SMALL = ["--device", "cpu", "--batch", "2,1", "--size", "64", "--models", "xcit_nano_12_p16"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROW = Contest(
    *("m", "plain", "predict", 224, 256, "bfloat16", "a GPU", 0, 1, 100.0, 0.0, None, 0.1, 1.0, 1.0, 1.0, 1),
    *("", "2", "3", "2026-01-01"),
)


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_passes_no_check(script, place):
    wanted = [torch.ones(3), torch.ones(3)]
    got = [torch.ones(3), torch.ones(3)]
    assert script.error(got, wanted) == 0
    got[place][1] = math.nan
    assert script.error(got, wanted) == math.inf


@pytest.mark.parametrize(
    ("failed", "batches"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", [8, 4]),
        ("the process ended without an error message (out of memory?)", [8]),
        ("", [8]),
    ],
    ids=["memory", "dead", "well"],
)
def test_batches_are_halved_where_memory_is_short_alone(script, monkeypatch, failed, batches):
    asked = []

    def contest(names, contenders, *, batch, **_):
        asked.append(batch)
        return [replace(ROW, batch=batch, failed=failed if batch == 8 else "")]

    monkeypatch.setattr(script, "contest", contest)
    args = argparse.Namespace(size=224, dtype="bfloat16", device="cuda", rounds=1, seconds=0.1)
    rows = script.measured("m", "predict", 8, ["plain"], args)
    assert asked == batches
    assert [row.batch for row in rows] == batches[-1:]


def test_models_of_halved_batches_are_in_the_summary_of_the_batch_asked_for(script):
    rows = [
        (256, ROW),
        (256, replace(ROW, contender="timm", images_per_s=50.0)),
        (256, replace(ROW, model="n", batch=128, images_per_s=400.0)),
        (256, replace(ROW, model="n", batch=128, contender="timm", images_per_s=50.0)),
    ]
    assert list(script.summary(rows)) == [
        "forward, batch 256, 128 of n: plain / timm 4.00 (2 models); best / best 4.00"
    ]


def test_the_end_of_the_minutes_is_not_swallowed(script):
    assert not issubclass(script.OutOfTime, Exception)


def test_contests_come_in_the_order_of_their_weight(script):
    assert script.ordered(script.PARTS, [256, 1]) == [("predict", 256), ("step", 256), ("predict", 1)]
    assert script.ordered(["step"], [256, 1]) == [("step", 256)]


def test_missing_packages_are_named(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "NEEDED", ("json", "no_such_package"))
    monkeypatch.setattr(script.sys, "argv", ["gpu.py", "--needs"])
    assert script.main() == 0
    assert capsys.readouterr().out == "missing: no_such_package\n"


@pytest.mark.parametrize("dtype", [None, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_step_of_dino_is_the_same_each_time(script, dtype):
    first, second = (script.dino_step(torch.device("cpu"), dtype) for _ in range(2))
    assert script.error(second, first) < 1e-5
    assert first[1].abs().max() > 0


@pytest.mark.nightly
def test_a_rehearsal_checks_and_measures(script, tmp_path):
    into = tmp_path / "rows.jsonl"
    done = run(*SMALL, "--contenders", "plain,timm", "--rounds", 2, "--seconds", 0.1, "--into", into)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in into.read_text().splitlines()]
    checks = [row for row in rows if "check" in row]
    assert [row["check"] for row in checks[::2]] == [
        *("xcit_nano_12_p16", "deit_small", "semantic_fpn", "upernet", "retinanet", "mask_rcnn", "cascade"),
        "dino step",
    ]
    for whole, half in zip(checks[::2], checks[1::2], strict=True):
        assert (whole["dtype"], half["dtype"]) == ("float32", "bfloat16")
        assert whole["error"] < 1e-5  # the same processor
        assert 0 < half["error"] < 0.1
        assert whole["passed"]
        assert half["passed"]
    measured = [(row["mode"], row["contender"], row["failed"]) for row in rows if "mode" in row]
    modes = ("predict", "step", "predict")  # the first batch in both, then the second
    assert measured == [(mode, c, "") for mode in modes for c in ("plain", "timm")]
    assert [row["batch"] for row in rows if "mode" in row] == [2, 2, 2, 2, 1, 1]
    kernels = [row for row in rows if "kernel" in row]
    assert 1 < len(kernels) <= script.SHOWN
    assert {row["model"] for row in kernels} == {"xcit_nano_12_p16"}
    assert sum(row["share"] for row in kernels) <= 1.001
    assert "| candidate |" in done.stdout
    assert "| model | contender | px |" in done.stdout
    assert "forward, backward and fused AdamW, batch 2: plain / timm " in done.stdout


@pytest.mark.slow
def test_a_run_ends_in_time_with_what_it_has():
    done = run(*SMALL, "--parts", "predict", "--contenders", "plain", "--rounds", 1000, "--minutes", 0.2)
    assert done.returncode == 0, done.stderr
    assert (
        "The 0.2 minutes are over; not finished: predict of xcit_nano_12_p16 at batch 2, and what follows.\n"
        in done.stdout
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_told():
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "There is no GPU here; --device cpu --batch 2 --size 64 rehearses without one.\n"
