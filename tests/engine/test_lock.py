"""One run per folder."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tetravit.engine import lock
from tetravit.engine.lock import Lock


def test_a_second_run_is_refused_and_the_folder_is_free_afterwards(tmp_path):
    with Lock(tmp_path):
        with pytest.raises(ValueError) as error, Lock(tmp_path):
            pass
        assert str(error.value) == (
            f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}. "
            "Wait for it, or remove lock.json there if it is gone."
        )
        assert (tmp_path / "lock.json").exists()
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path):
        pass


def test_a_killed_run_does_not_keep_its_folder(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from tetravit.engine.lock import Lock\n"
        "with Lock(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path]).returncode == -9
    assert (tmp_path / "lock.json").exists()
    with Lock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def hold(tmp_path, **entries):
    own = {"pid": os.getpid(), "host": socket.gethostname(), "started": lock._started(os.getpid())}
    (tmp_path / "lock.json").write_text(json.dumps({**own, **entries}))


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    hold(tmp_path, started="1")
    with Lock(tmp_path):
        pass


def test_a_holder_elsewhere_counts_while_it_is_heard_of(tmp_path):
    hold(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(ValueError, match="in use by process 1 on elsewhere"), Lock(tmp_path):
        pass
    long_ago = time.time() - lock.SILENT_S - 1
    os.utime(tmp_path / "lock.json", (long_ago, long_ago))
    with Lock(tmp_path):
        pass


def test_the_holder_is_heard_of(tmp_path):
    with Lock(tmp_path) as held:
        os.utime(held.path, (1, 1))
        held.beat()
        assert time.time() - held.path.stat().st_mtime < 5


def test_half_a_lock_holds_nothing(tmp_path):
    (tmp_path / "lock.json").write_text('{"pid": ')
    with Lock(tmp_path):
        pass


def test_a_silent_holder_elsewhere_is_waited_for_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "SILENT_S", 41.0)
    monkeypatch.setattr(lock.time, "sleep", lambda s: os.utime(path, (ago := time.time() - 42, ago)))
    hold(tmp_path, host="node17")
    path = tmp_path / "lock.json"
    os.utime(path, (ago := time.time() - 40, ago))
    lines = []
    with Lock(tmp_path, lines.append):
        assert lines == [f"{tmp_path} is held by node17, silent for 40 s; waiting up to 41 s."]


def test_a_holder_elsewhere_that_gives_a_sign_of_life_keeps_the_folder(tmp_path, monkeypatch):
    hold(tmp_path, host="node17")
    path = tmp_path / "lock.json"
    os.utime(path, (ago := time.time() - 40, ago))
    monkeypatch.setattr(lock.time, "sleep", lambda s: os.utime(path))
    with pytest.raises(ValueError, match=r"in use by process \d+ on node17"), Lock(tmp_path):
        pass


def test_the_same_job_started_again_elsewhere_takes_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    hold(tmp_path, host="node17", job="17")
    with Lock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["job"] == "17"


@pytest.mark.parametrize(("state", "free"), [("NODE_FAIL", True), ("RUNNING", False)])
def test_slurm_says_whether_the_job_of_a_holder_has_ended(tmp_path, monkeypatch, state, free):
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$3" = 18 ] && echo {state}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hold(tmp_path, host="node17", job="18")
    if free:
        with Lock(tmp_path):
            return
    with pytest.raises(ValueError, match="in use"), Lock(tmp_path):
        pass


def test_a_folder_that_is_gone_is_left_without_an_error(tmp_path):
    import shutil

    folder = tmp_path / "run"
    folder.mkdir()
    with Lock(folder):
        shutil.rmtree(folder)
