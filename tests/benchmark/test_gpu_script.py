"""benchmarks/gpu.py can be run: rehearsed on a processor, refused where there is no GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SMALL = ["--device", "cpu", "--batch", "2", "--size", "64", "--models", "xcit_nano_12_p16"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=550)


@pytest.mark.slow
def test_a_rehearsal_checks_and_measures(tmp_path):
    into = tmp_path / "rows.jsonl"
    done = run(*SMALL, "--contenders", "plain,timm", "--rounds", 2, "--seconds", 0.1, "--into", into)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in into.read_text().splitlines()]
    checks = [row for row in rows if "check" in row]
    assert [row["check"] for row in checks[::2]] == [
        *("xcit_nano_12_p16", "semantic_fpn", "upernet", "retinanet", "mask_rcnn", "cascade")
    ]
    for whole, half in zip(checks[::2], checks[1::2], strict=True):
        assert (whole["dtype"], half["dtype"]) == ("float32", "bfloat16")
        assert whole["error"] < 1e-5  # the same processor
        assert 0 < half["error"] < 0.1
        assert whole["passed"]
        assert half["passed"]
    measured = [(row["mode"], row["contender"], row["failed"]) for row in rows if "mode" in row]
    assert measured == [(mode, c, "") for mode in ("predict", "step") for c in ("plain", "timm")]
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
