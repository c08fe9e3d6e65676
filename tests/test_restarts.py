"""One command starts and continues a run: after kills of ranks, after signals, on two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tetravit.weights.fileformat import read

RECIPE = [
    "digits", "steps=90", "optim.warmup_epochs=0", "model.name=xcit_nano_12_p16", "model.options.depth=1",
    "model.drop_path=0.1", "data.options.fraction=0.2", "data.mix=mixup(0.8)", "data.workers=0", "data.batch_size=16",
    "run.log_steps=5", "run.save_steps=5", "run.evaluate_epochs=0", "run.device=cpu",
]  # fmt: skip


def start(run, *options):
    command = [
        sys.executable,
        "-m",
        "tetravit",
        "launch",
        "--nproc-per-node",
        "2",
        "--standalone",
        *options,
    ]
    command += ["train", *RECIPE, "--into", str(run), "--continue"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def ranks(launcher):
    """{rank: pid} of the processes that train."""
    parents, found = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                environment = (entry / "environ").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            rank = next((int(x[5:]) for x in environment if x.startswith(b"RANK=")), None)
            if rank is not None:
                found[int(entry.name)] = rank
    agents = {pid for pid, parent in parents.items() if parent == launcher}
    return {rank: pid for pid, rank in found.items() if parents.get(pid) in agents}


def saved(run):
    names = [p.name for p in (run / "checkpoints").glob("step_*")] if (run / "checkpoints").exists() else []
    return max((int(name[5:]) for name in names), default=0)


def wait_for_step(process, run, step):
    deadline = time.monotonic() + 120
    while saved(run) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.nightly
def test_kills_and_signals_change_nothing(tmp_path, request):
    run, straight = tmp_path / "run", tmp_path / "straight"
    process = start(run, "--max-restarts", "3")
    request.addfinalizer(process.kill)
    for rank, step in ((1, 10), (0, 25)):
        wait_for_step(process, run, step)
        os.kill(ranks(process.pid)[rank], signal.SIGKILL)
    wait_for_step(process, run, 40)
    left = list(ranks(process.pid).values())
    for i in range(100):  # more than one kind, and faster than any of them is dealt with
        process.send_signal(signal.SIGUSR1 if i % 2 else signal.SIGTERM)
        time.sleep(0.005)
        if process.poll() is not None:
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Stopped by SIG" in err
    assert not (run / "lock.json").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"

    for folder in (run, straight):
        process = start(folder)
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    ours, theirs = (read(folder / "last.safetensors")[0] for folder in (run, straight))
    assert all((value == theirs[name]).all() for name, value in ours.items())
