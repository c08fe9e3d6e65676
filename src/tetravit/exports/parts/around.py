"""Folders around exported files: written beside their place, moved there whole."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tetravit import exports
from tetravit.exports.base import Folder
from tetravit.models.portable import Portable
from tetravit.registry import suggestion
from tetravit.runtimes.base import CannotRun


def export_folder(
    model: Portable,
    path: Path,
    name: str,
    *,
    existing: Literal["refuse", "replace"],
    settings: Mapping[str, Any],
    dtype: str,
    **options: Any,
) -> "exports.Exported":
    """Write the folder of the kind `name` to `path`; options: of `tetravit.export`, for the file inside.

    Raises:
        ValueError: as `tetravit.export`, and for a setting that the kind does not have.
    """
    row = exports.FOLDERS[name]
    check_folder(path, row, existing)
    for setting in settings:
        if setting not in row.settings:
            raise ValueError(
                f"The format {name!r} has no setting {setting!r}.{suggestion(setting, row.settings)}"
            )
    if dtype not in row.dtypes:
        raise ValueError(f"dtype takes one of {', '.join(row.dtypes)} for {name}; got {dtype!r}.")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as place:
        draft = Path(place) / "new"
        draft.mkdir()
        try:
            row.check(model)
            done = exports.export(model, draft / row.main, row.inside, dtype=dtype, **options)
            row.add(draft, model, settings)
        except CannotRun as error:
            raise ValueError(f"The format {name!r} cannot hold this model: {error}.") from error
        check_folder(path, row, existing)  # others may have written in the meantime
        if path.exists():
            os.rename(path, Path(place) / "old")
        os.rename(draft, path)
    files = sorted(path.iterdir(), key=lambda file: (file.name != row.first, file.name))
    size = sum(file.stat().st_size for file in files)
    return replace(done, files=tuple(files), format=name, size=size)


def check_folder(path: Path, row: Folder, existing: Literal["refuse", "replace"]) -> None:
    """Raises: ValueError if a folder cannot be written to `path`, or would replace other files than its own."""
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r}.")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a folder is to be written there.")
    there = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    other = next((name for name in there if name not in row.names), None)
    if other is not None:
        raise ValueError(f"{path / other} is there, and not of an export; the folder is to be empty or new.")
    if there and existing == "refuse":
        raise ValueError(f"{path} is there already; --force, in Python existing='replace', writes over it.")
