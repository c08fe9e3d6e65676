"""`tetravit embed|predict MODEL --data DIR --to OUT`: units written whole, skipped when finished, by every engine."""

import json
import os
import signal
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.bulk import ENGINES, Settings, make_plan
from tetravit.bulk import local as local_engine
from tetravit.cli.app import main
from tetravit.models import create_model, save

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16", num_classes=3, image_size=32, depth=1, dim=32).eval()
    save(model, tmp_path / "w.safetensors")
    folder = tmp_path / "images"
    for i in range(5):
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i % 2}" / f"{i}.png")
    (folder / "0" / "bad.png").write_bytes(b"no image")
    return model, folder


def call(*words):
    with pytest.raises(SystemExit) as code:
        main([str(word) for word in words])
    return code.value.code


def tables(folder):
    rows = []
    for file in sorted(folder.glob("*.parquet")):
        rows += parquet.read_table(file).to_pylist()
    return rows


def test_embeddings_of_files(given, tmp_path, capsys):
    model, folder = given
    assert call("embed", "w.safetensors", "--data", folder, "--to", "out", "--unit", 4, "--batch", 2) == 0
    assert capsys.readouterr().err == "Wrote 2 of 2 units to out.\n"
    rows = tables(tmp_path / "out")
    assert [row["name"] for row in rows] == [
        "0/0.png",
        "0/2.png",
        "0/4.png",
        "0/bad.png",
        "1/1.png",
        "1/3.png",
    ]
    assert rows[3]["embedding"] is None
    assert rows[3]["error"].startswith("it is not an image")
    for row in rows[:3] + rows[4:]:
        with torch.inference_mode():
            wanted = model.backbone(model.preprocess(folder / row["name"])[None])[0]
        np.testing.assert_allclose(row["embedding"], wanted.numpy(), atol=1e-5)
        assert row["error"] is None


def test_predictions_of_shards_equal_those_of_files(given, tmp_path):
    from tetravit.data.shards.pack import pack

    _, folder = given
    (folder / "0" / "bad.png").unlink()
    pack(folder, tmp_path / "shards", name="unlabelled", workers=1, order="sorted")
    assert call("predict", "w.safetensors", "--data", folder, "--to", "a", "--topk", 2) == 0
    assert call("predict", "w.safetensors", "--data", tmp_path / "shards", "--to", "b", "--topk", 2) == 0
    assert [f.name for f in (tmp_path / "b").glob("*.parquet")] == ["train-000000.parquet"]
    a, b = tables(tmp_path / "a"), tables(tmp_path / "b")
    assert [row["name"] for row in b] == [f"train-000000.tar/{row['name']}" for row in a]
    for one, other in zip(a, b, strict=True):
        assert json.loads(one["prediction"]) == json.loads(other["prediction"])


def test_finished_units_are_skipped_and_others_refused(given, tmp_path, capsys):
    _, folder = given
    words = ["embed", "w.safetensors", "--data", folder, "--to", "out", "--unit", 2]
    assert call(*words, "--only", "1/2") == 0
    first = (tmp_path / "out" / "000001.parquet").stat().st_mtime_ns
    assert call(*words, "--dry-run") == 0
    assert "2 of 3 units are to be done: 000000 to 000002." in capsys.readouterr().err
    assert call(*words) == 0
    assert (tmp_path / "out" / "000001.parquet").stat().st_mtime_ns == first
    capsys.readouterr()
    assert call(*words) == 0
    assert capsys.readouterr().err == "All 3 units of out are finished.\n"
    assert call("predict", "w.safetensors", "--data", folder, "--to", "out", "--unit", 2) == 2
    assert capsys.readouterr().err == (
        "tetravit predict: 'out' holds the results of another job: its verb is 'embed', not 'predict'. Take another"
        " folder.\n"
    )


@pytest.mark.slow
def test_messages(given, capsys):
    _, folder = given
    base = ["embed", "w.safetensors", "--data", folder]
    for words, text in (
        (["embed", "w.safetensors"], "embed takes IMAGE... --out FILE, or --data DIR --to OUT."),
        (base, "embed --data writes into a folder: --to DIR."),
        ([*base, "--to", "o", "--engine", "dask"], "Unknown engine 'dask'. Known: local, ray, slurm."),
        ([*base, "--to", "o", "--engine-option", "x=1"], "The engine local has no option 'x'."),
        ([*base, "--to", "o", "--only", "2/2"], "--only is I/N, 0 <= I < N; got '2/2'."),
        ([*base[:3], folder / "none", "--to", "o"], f"There is no folder {str(folder / 'none')!r}."),
    ):
        assert call(*words) == 2
        assert text in capsys.readouterr().err


def test_slurm(given, tmp_path, monkeypatch, capsys):
    _, folder = given
    words = (
        f"embed w.safetensors --data {folder} --to out --unit 2 --engine slurm --engine-option partition=gpu"
    )
    words += " --engine-option tasks=2 --engine-option gpus=1"
    monkeypatch.setattr("sys.argv", ["tetravit", *words.split()])
    assert call(*words.split(), "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "#SBATCH --array=0-1\n" in out
    assert "#SBATCH --partition=gpu\n#SBATCH --gres=gpu:1\n" in out
    last = out.rstrip().splitlines()[-1]
    assert last.endswith(
        f"-m tetravit embed w.safetensors --data {folder} --to out --unit 2 --engine local"
        ' --only "$SLURM_ARRAY_TASK_ID/2"'
    )
    assert err == "3 units; nothing was submitted.\n"
    assert call(*words.split()) == 2
    assert "There is no sbatch on this machine; the script is" in capsys.readouterr().err
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "sbatch"
    stand_in.write_text("#!/bin/sh\ngrep -c requeue $1 >&2\necho Submitted batch job 7\n")
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert call(*words.split()) == 0
    assert capsys.readouterr().err == "Submitted batch job 7\n"


class Killed:
    """Stands for the pool of processes: the first one dies with a unit."""

    def __init__(self, workers, spawn):
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    def submit(self, function, plan, unit, device):
        from concurrent.futures.process import BrokenProcessPool

        def attempt():
            Killed.calls += 1
            if Killed.calls in Killed.deaths:
                raise BrokenProcessPool
            function(plan, unit, device)

        return self.pool.submit(attempt)

    def shutdown(self, **_):
        self.pool.shutdown(cancel_futures=True)


def test_a_process_that_dies_is_replaced(given, tmp_path, monkeypatch):
    _, folder = given
    monkeypatch.setattr("tetravit.data.processes.process_pool", Killed)
    plan = make_plan("embed", "w.safetensors", str(folder), tmp_path / "out", unit=2)
    Killed.calls, Killed.deaths = 0, {2}
    local_engine.run(plan, plan.unfinished(), Settings(processes=2), lambda done, total: None)
    assert len(tables(tmp_path / "out")) == 6
    Killed.calls, Killed.deaths = 0, range(100)
    other = make_plan("embed", "w.safetensors", str(folder), tmp_path / "b", unit=2)
    with pytest.raises(ValueError) as error:
        local_engine.run(other, other.unfinished(), Settings(processes=2), lambda done, total: None)
    assert str(error.value).startswith("Processes died 4 times; 3 units are left, the first '000000'.")


@pytest.mark.nightly
def test_a_storm_of_kills(given, tmp_path):
    """The command is killed at random times, and given again until it ends well: no row is lost or twice."""
    import subprocess
    import sys
    import time

    _, folder = given
    command = [
        sys.executable,
        "-m",
        "tetravit",
        "embed",
        "w.safetensors",
        "--data",
        str(folder),
        "--to",
        "out",
    ]
    command += ["--unit", "1"]
    for seconds in np.random.default_rng(0).uniform(3, 7, int(os.environ.get("TETRAVIT_KILLS", "2"))):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    assert len({row["name"] for row in tables(tmp_path / "out")}) == len(tables(tmp_path / "out")) == 6


def test_ray_without_its_package(given, tmp_path, monkeypatch):
    from tetravit.bulk import ray

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(ray, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(ValueError) as error:
        ENGINES["ray"].run(None, [1], Settings(), lambda done, total: None)
    assert str(error.value) == "The engine ray needs its package: pip install 'tetravit[ray]'."


class Cluster:
    """Stands for the package ray: tasks run when they are waited for; those in `lost` lose their actor."""

    class exceptions:
        RayActorError = type("RayActorError", (Exception,), {})
        NodeDiedError = type("NodeDiedError", (Exception,), {})
        RayTaskError = type("RayTaskError", (Exception,), {})

    def __init__(self, lost):
        self.lost, self.actors, self.calls = lost, 0, 0

    def is_initialized(self):
        return True

    def kill(self, worker):
        self.killed = True

    def cluster_resources(self):
        return {"CPU": 2 if not self.calls else 1}

    def remote(self, **_):
        return lambda kind: type("Actor", (), {"remote": lambda: self.made(kind())})

    def made(self, worker):
        self.actors += 1
        method = type(
            "Method", (), {"remote": staticmethod(lambda *arguments: (worker.run, arguments, object()))}
        )
        return type("Handle", (), {"run": method})

    def wait(self, tasks, num_returns):
        return tasks[:1], tasks[1:]

    def get(self, task):
        self.calls += 1
        if self.calls in self.lost:
            raise self.exceptions.RayActorError("the node died")
        task[0](*task[1])


def test_ray_goes_on_when_actors_are_lost(given, tmp_path, monkeypatch):
    from tetravit.bulk import ray

    _, folder = given
    cluster = Cluster({2, 3})
    monkeypatch.setattr(ray, "importlib", SimpleNamespace(import_module=lambda name: cluster))
    plan, seen = make_plan("embed", "w.safetensors", str(folder), tmp_path / "a", unit=2), []
    do_unit = __import__("tetravit.bulk.parts.work", fromlist=["do_unit"])
    monkeypatch.setattr(do_unit, "do_unit", lambda plan, unit, device: seen.append(unit.name))
    done = []
    ray.run(plan, plan.units, Settings(processes=2), lambda count, total: done.append((count, total)))
    assert sorted(seen) == ["000000", "000001", "000002"]
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert cluster.actors == 3  # two lost; one of the first two and one more went on
    other = Cluster(range(100))
    monkeypatch.setattr(ray, "importlib", SimpleNamespace(import_module=lambda name: other))
    with pytest.raises(ValueError) as error:
        ray.run(plan, plan.units, Settings(processes=1), lambda count, total: None)
    assert str(error.value) == "The process of unit '000000' was lost 10 times: the node died."


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_ray_node_is_lost_in_the_middle(given, tmp_path, monkeypatch):
    """Two nodes of one cluster; one dies after the first results, the other finishes all units."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    import tetravit

    _, folder = given
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(tetravit.__file__)))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = []
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        plan = make_plan("embed", "w.safetensors", str(folder), tmp_path / "out", unit=1)

        def progress(done, total):
            if done == 2 and not lost:
                cluster.remove_node(second, allow_graceful=False)
                lost.append(done)

        settings = Settings(processes=2, options={"address": cluster.address})
        ENGINES["ray"].run(plan, plan.unfinished(), settings, progress)
        assert lost
        assert len(tables(tmp_path / "out")) == 6
    finally:
        ray.shutdown()
        cluster.shutdown()
