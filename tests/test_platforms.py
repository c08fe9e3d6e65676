"""What Windows and macOS lack, taken away on Linux: no fcntl, no fork, no POSIX signals, no /proc."""

import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

import tetravit

ROOT = Path(__file__).parents[1]
WITHOUT = """
import builtins, importlib.abc, os, signal, sys

for name in ("fork", "forkpty", "setsid", "killpg", "getuid", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGCHLD", "SIGQUIT"):
    if hasattr(signal, name):
        delattr(signal, name)


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocked())
opened = builtins.open


def open_(file, *arguments, **options):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return opened(file, *arguments, **options)


builtins.open = open_
"""
RUN = """
import tetravit
from tetravit.cli import main

quick = ["epochs=1", "model.options.depth=1", "data.options.fraction=0.1", "data.workers=0", "data.batch_size=16"]
for arguments in (
    ["train", "digits", *quick, "--into", "run"],
    ["predict", "run", "digit.png", "--draw", "drawn"],
):
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code in (0, None), (arguments, ended.code)
print("done")
"""
IMPORT = """
import importlib, pkgutil
import tetravit

for module in pkgutil.walk_packages(tetravit.__path__, "tetravit."):
    if module.name.startswith("tetravit.bridges.") or module.name == "tetravit.__main__":
        continue  # other libraries have their own uses of what is gone
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # a library of an extra
        name = error.name.partition(".")[0]
        assert name != "tetravit" and name not in sys.stdlib_module_names, (module.name, error)
print("done")
"""


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("done\n"), done.stderr[-2000:]


@pytest.mark.slow
def test_every_module_is_imported_without_them(tmp_path):
    run(IMPORT, tmp_path)


@pytest.mark.slow
def test_a_run_trains_and_predicts_without_them(tmp_path):
    (tmp_path / "digit.png").write_bytes((ROOT / "docs" / "digits" / "0.png").read_bytes())
    run(RUN, tmp_path)


def test_files_are_named_so_that_every_system_can_hold_them():
    """No two names that differ in case alone, no name that Windows reserves, no path above 200 characters."""
    names = [
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for folder in ("src", "tests", "docs", "benchmarks", "results", "packaging")
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts and not path.name.endswith(".pyc")
    ]
    assert len({str(name).lower() for name in names}) == len(names)
    reserved = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
    for name in names:
        assert len(str(name)) < 200
        assert not set('<>:"|?*\\\\') & set(str(name)), name
        assert not reserved & {part.partition(".")[0].lower() for part in name.parts}, name
        assert PureWindowsPath(name).as_posix() == str(name)


def test_the_package_is_ascii():
    """So that its files are read alike whatever the encoding of a system is."""
    kinds = {".py", ".toml", ".json", ".txt", ".css", ".js", ".html"}
    files = [path for path in Path(tetravit.__file__).parent.rglob("*") if path.suffix in kinds]
    assert len(files) > 300
    assert [path for path in files if not path.read_bytes().isascii()] == []
