"""Build the sdist and the wheel, check what is in them, and run tests from the wheel outside of the tree.

    python packaging/check.py                                      build and check, half a minute
    python packaging/check.py --tests tests/test_recipe.py ...     and run these with the wheel installed
    python packaging/check.py --tests fast --lowest                the fast tests on the oldest versions

Needs `pip install build twine check-wheel-contents`. The wheel goes into a fresh virtual environment: with --tests
its dependencies are installed there (`--site` takes those of this Python instead, without a download).
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_SDIST = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}  # they are of the repository


def run(*command: str, cwd: Path = ROOT) -> None:
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, cwd=cwd, check=False).returncode:
        sys.exit(f"Failed: {' '.join(command)}")


def tracked() -> set[str]:
    """Files of the repository, those that are not committed yet included."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (ROOT / name).is_file()}


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it."""
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def missing(sdist: Path, wheel: Path) -> list[str]:
    """What the repository has and a package lacks, and what a package has beyond it."""
    files = tracked()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    wanted = {name for name in files if name.split("/")[0] not in NOT_IN_SDIST}
    found = [f"sdist lacks {name}" for name in sorted(wanted - packed)]
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("tetravit/")}
    sources = {name.removeprefix("src/") for name in files if name.startswith("src/tetravit/")}
    found += [f"wheel lacks {name}" for name in sorted(sources - inside)]
    return found + [f"wheel has {name}, which the repository lacks" for name in sorted(inside - sources)]


def check_version(wheel: Path) -> None:
    """The name of the wheel has the version of pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if wheel.name.split("-")[1] != version:
        sys.exit(f"{wheel.name} is not version {version}.")


def test(sdist: Path, wheel: Path, folder: Path, tests: list[str], *, lowest: bool, site: bool) -> None:
    """Run tests of the sdist, without its sources, on the installed wheel."""
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    limits = ["-c", str(ROOT / "packaging" / "lowest.txt")] if lowest else []
    run(*pip, *(["--no-deps", str(wheel)] if site else [f"{wheel}[test]", *limits]))
    if site:
        (packages,) = (folder / "venv").rglob("site-packages")
        (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (place,) = (folder / "sdist").iterdir()
    (place / "src").rename(folder / "not-used")
    where = [python, "-c", "import tetravit; print(tetravit.__file__)"]
    file = subprocess.run(where, cwd=place, capture_output=True, text=True, check=True).stdout.strip()
    if "site-packages" not in file:
        sys.exit(f"The tests would run on {file}, not on the wheel.")
    run(python, "-m", "pytest", *([] if tests == ["fast"] else tests), cwd=place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tests", nargs="+", metavar="FILE", help="tests to run on the wheel; fast: all fast ones"
    )
    parser.add_argument("--lowest", action="store_true", help="on the oldest versions of the dependencies")
    parser.add_argument("--site", action="store_true", help="with the packages that this Python has")
    given = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # it would lead to the tree
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        check_version(wheel)
        run(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
        run(sys.executable, "-m", "check_wheel_contents", str(wheel))
        if faults := missing(sdist, wheel):
            sys.exit("\n".join(faults))
        if given.tests:
            test(sdist, wheel, folder, given.tests, lowest=given.lowest, site=given.site)


if __name__ == "__main__":
    main()
