"""Open exported files: to predict with them, and to compare them again."""

import zipfile
from pathlib import Path

from tetravit import exports
from tetravit.exports.base import Run, Target, held
from tetravit.exports.parts.certificate import place_of, read_certificate
from tetravit.exports.parts.program import Program
from tetravit.registry import pick
from tetravit.runtimes.base import quiet

TRUST = "run it with --trust (in Python trust=True)"


def is_exported(path: str | Path) -> bool:
    """Whether a path names a file of an export target, by its ending."""
    suffixes = {target.suffix for target in exports.TARGETS.values()}
    return Path(path).suffix in suffixes and Path(path).is_file()


def load_program(path: str | Path, *, trust: bool = False) -> Program:
    """An exported file in the place of its model, for predictions.

    Args:
        path: the file that `tetravit export` wrote, the main one of several.
        trust: run files whose formats hold code, those of torch and AOTInductor.

    Raises:
        ValueError: if it is none, what runs it is missing, it is for another processor, holds code and is not
            trusted, or holds a backbone.
    """
    path = Path(path)
    target = exports.TARGETS[target_of(path)]
    why = target.ready()
    if why:
        raise ValueError(f"{path} cannot be run here: {why}.")
    facts = target.facts(path)
    return Program(opened(path, target, trust), facts, path.name)


def target_of(path: Path) -> str:
    """The name of the target of an exported file: what its certificate says, else its ending or its contents.

    Raises:
        ValueError: if no target writes such files.
    """
    if place_of(path).is_file():
        name = read_certificate(place_of(path)).target
        pick(exports.TARGETS, name, "format")
        return name
    names = [name for name, target in exports.TARGETS.items() if target.suffix == path.suffix]
    if len(names) > 1:
        names = [name for name in names if _is_compiled(path) != exports.TARGETS[name].by_ending]
    if not names:
        raise ValueError(f"{path} is no exported file: no format ends in {path.suffix!r}.")
    return names[0]


def _is_compiled(path: Path) -> bool:
    """Whether an archive holds native code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def opened(path: Path, target: Target, trust: bool) -> Run:
    """Run a file: inputs -> outputs.

    Raises:
        ValueError: if what runs it is missing, it is for another processor, or holds code and is not trusted.
    """
    if target.runs_code and not trust:
        raise ValueError(
            f"{path} can execute arbitrary code, because {target.runs_code}: {TRUST} only if you trust its source."
        )
    why = target.ready() or target.unfit(path)
    if why:
        raise ValueError(f"{path} cannot be run here: {why}.")
    with quiet(), held(f"{path} cannot be run here"):
        return target.load(path)
