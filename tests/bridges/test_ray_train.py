"""A run on Ray Train: two workers on a local cluster, one of which is killed; the end is that of torchrun."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tetravit.recipe import dump, validated
from tetravit.weights.fileformat import read

RECIPE = {
    "steps": 24,
    "task": {"name": "classify"},
    "model": {"name": "xcit_nano_12_p16", "drop_path": 0.1, "options": {"depth": 1}},
    "data": {
        "name": "digits", "image_size": 32, "batch_size": 16, "workers": 0, "mix": "mixup(0.8)",
        "options": {"fraction": 0.2},
    },
    "optim": {"warmup_epochs": 0},
    "run": {"log_steps": 4, "save_steps": 4, "evaluate_epochs": 0, "device": "cpu"},
}  # fmt: skip


def saved(run):
    names = [p.name for p in (run / "checkpoints").glob("step_*")] if (run / "checkpoints").exists() else []
    return max((int(name[5:]) for name in names), default=0)


def training_workers():
    """Processes of Ray's training workers that this process has started."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue

    def is_ours(pid):
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sorted(pid for pid, name in names.items() if b"TrainWorker" in name and is_ours(pid))


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_worker_is_killed_and_the_end_is_that_of_torchrun(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    import tetravit
    from tetravit.bridges.ray import train_on_ray

    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(tetravit.__file__)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    run, straight, killed = tmp_path / "run", tmp_path / "straight", []
    recipe = validated(RECIPE)
    done = threading.Event()

    def kill():
        while not done.is_set() and saved(run) < 8:
            time.sleep(0.02)
        pids = training_workers()
        if pids and not done.is_set():
            os.kill(pids[-1], signal.SIGKILL)
            killed.append((pids, saved(run)))

    killer = threading.Thread(target=kill)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        killer.start()
        train_on_ray(recipe, run, workers=2, use_gpu=False, storage_path=str(tmp_path / "storage"))
    finally:
        done.set()
        killer.join()
        ray.shutdown()
    ((pids, step),) = killed
    assert len(pids) == 2
    assert 8 <= step < 24

    file = tmp_path / "recipe.toml"
    file.write_text(dump(recipe))
    command = [sys.executable, "-m", "tetravit", "launch", "--nproc-per-node", "2", "--standalone", "train"]
    subprocess.run([*command, str(file), "--into", str(straight)], check=True, stderr=subprocess.DEVNULL)
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    ours, theirs = (read(folder / "last.safetensors")[0] for folder in (run, straight))
    assert all((value == theirs[name]).all() for name, value in ours.items())


def test_without_the_package(monkeypatch, tmp_path):
    from tetravit.bridges.ray import train_on_ray

    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(ValueError) as error:
        train_on_ray(validated(RECIPE), tmp_path, workers=2)
    assert str(error.value) == "Ray Train is not installed: pip install 'tetravit[ray]'."
