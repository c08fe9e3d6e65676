"""A copy of the package, made of links, with files of a test's own in it: what a new file in a menu does."""

import os
import subprocess
import sys
from pathlib import Path

import tetravit

PACKAGE = Path(tetravit.__file__).parent


def package_with(folder, files):
    """A folder for PYTHONPATH that holds the package and `files`, texts by path relative to the package."""
    _link(PACKAGE, folder / "tetravit")
    for name, text in files.items():
        target = folder / "tetravit" / name
        assert not target.exists(), name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder


def _link(source, target):
    target.mkdir()
    for entry in source.iterdir():
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            _link(entry, target / entry.name)
        else:
            (target / entry.name).symlink_to(entry)


def python(folder, *arguments, cwd=None):
    """Run Python with the package in `folder`; its standard output, after checking that it ended well."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
