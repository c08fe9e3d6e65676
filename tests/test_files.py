"""Files that appear whole, and a package that imports where there is no fcntl."""

import errno
import subprocess
import sys

import pytest

from tetravit.cli.app import one_line
from tetravit.files import atomic, read_json, write_json

HIDDEN = """
import sys
sys.modules["fcntl"] = None  # as on Windows: importing it raises ImportError
from pathlib import Path
from tetravit import files
from tetravit.data.datasets import shards  # noqa: F401
from tetravit.data.shards import pack  # noqa: F401
from tetravit.runs import train  # noqa: F401
from tetravit.weights import store
from tetravit.engine.lock import Lock
assert files.fcntl is None
with Lock(Path(sys.argv[1])), store.lock(Path("x")):
    print("locked")
"""


def test_a_write_that_fails_leaves_the_older_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail():
        with atomic(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.slow
def test_a_full_disk_is_named(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError) as error, atomic(tmp_path / "a.json"):
        raise full
    assert error.value.filename == str(tmp_path / "a.json")
    assert one_line(error.value) == f"{tmp_path / 'a.json'}: No space left on device."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_imports_without_fcntl(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    done = subprocess.run([sys.executable, "-c", HIDDEN, tmp_path], capture_output=True, text=True)
    assert done.stdout == "locked\n", done.stderr
