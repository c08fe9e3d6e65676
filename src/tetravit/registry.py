"""Menus: a folder offers names, each module in it adds rows."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row")


def discover(package: str, table: str) -> dict[str, Any]:
    """Merge the dict named `table` of every module directly inside `package`.

    Raises:
        ValueError: if two modules offer the same name.
    """
    menu: dict[str, Any] = {}
    source: dict[str, str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for name, row in getattr(module, table, {}).items():
            if name in menu:
                raise ValueError(f"{name!r} is offered twice: by {source[name]} and by {module.__name__}.")
            menu[name], source[name] = row, module.__name__
    return menu


def pick(menu: Mapping[str, Row], name: str, kind: str) -> Row:
    """The row called `name`, or an error that suggests the nearest one.

    Raises:
        ValueError: if no row has that name; `kind` says what was looked for ("model", "recipe", ...).
    """
    if name in menu:
        return menu[name]
    raise ValueError(f"Unknown {kind} {name!r}.{suggestion(name, menu)}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest of `names`, or where none is near, what there is."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if len(names) <= 12:
        return f" Known: {', '.join(sorted(names))}."
    return ""
