"""Menus: each module in a folder adds rows to the folder's table."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def discover(package: str, table: str, *, only: str | None = None) -> dict[str, Any]:
    """Merge the dict named `table` of every module directly inside `package`; other modules are not imported.

    only: import only modules whose source contains this name in quotes, which is faster.

    Raises:
        ValueError: if two modules define the same name.
    """
    menu: dict[str, Any] = {}
    source: dict[str, str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        source_text = _source(info, f"{package}.{info.name}")
        if not re.search(rf"^{table}\b", source_text, re.M):
            continue  # the module has no such table
        if only is not None and f'"{only}"' not in source_text:
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for name, row in getattr(module, table, {}).items():
            if name in menu:
                raise ValueError(f"{name!r} is offered twice: by {source[name]} and by {module.__name__}.")
            menu[name], source[name] = row, module.__name__
    return menu


def pick(menu: Mapping[str, Row], name: str, kind: str) -> Row:
    """The row called `name`, or an error with the nearest name.

    Raises:
        ValueError: for an unknown name; `kind` is used in the message ("model", "recipe", ...).
    """
    if name in menu:
        return menu[name]
    raise ValueError(f"Unknown {kind} {name!r}.{suggestion(name, menu) or _listed(kind)}")


LISTED = {  # kinds of `tetravit list`, by what messages call their rows
    "model": "models",
    "recipe": "recipes",
    "data set": "datasets",
    "transform": "transforms",
    "head": "heads",
    "protocol": "protocols",
    "method": "methods",
}


def _listed(kind: str) -> str:
    return f" `tetravit list {LISTED[kind]}` shows them." if kind in LISTED else ""


# Synonyms of recipe keys in other programs.
SYNONYMS = {
    "accumulation_steps": "run.accumulate",
    "amp": "run.precision",
    "arch": "model.name",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "checkpoint": "model.weights",
    "clip_grad": "optim.clip",
    "dataset": "data.name",
    "device": "run.device",
    "dtype": "run.precision",
    "fp16": "run.precision",
    "grad_accum": "run.accumulate",
    "img_size": "data.image_size",
    "imgsz": "data.image_size",
    "input_size": "data.image_size",
    "learning_rate": "optim.lr",
    "lr": "optim.lr",
    "mixed_precision": "run.precision",
    "num_epochs": "epochs",
    "num_workers": "data.workers",
    "optimizer": "optim.name",
    "path": "data.root",
    "pretrained": "model.weights",
    "scheduler": "optim.schedule",
    "seed": "run.seed",
    "wd": "optim.weight_decay",
    "workers": "data.workers",
}


def suggestion(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest of `names`, or a list of the names."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if len(names) <= 12:
        return f" Known: {', '.join(sorted(names))}."
    return ""


@dataclass(frozen=True)
class Outline:
    """A row of a menu parsed from its source: its docstring, or that of its module.

    options: its arguments, "width: int = 256", in order; None: inherited from outside this package.
    """

    about: str
    options: tuple[str, ...] | None = ()


def outlines(package: str, table: str) -> dict[str, Outline]:
    """The rows of a menu, parsed from the sources of its modules without importing them.

    A module whose table is not a literal of classes, functions and calls is imported instead.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    rows: dict[str, Outline] = {}
    for info in sorted(pkgutil.iter_modules(folders), key=lambda info: info.name):
        source = _source(info, f"{package}.{info.name}")
        if table not in source:
            continue
        entries = _outlined(ast.parse(source), table)
        if entries is None:
            menu = getattr(importlib.import_module(f"{package}.{info.name}"), table, {})
            entries = {name: outline(row) for name, row in menu.items()}
        rows |= entries
    return rows


def outline(row: Any) -> Outline:
    """The same for an imported row: a class, a function, a partial, or an object."""
    row = getattr(row, "func", row)
    if not isinstance(row, type) and not inspect.isroutine(row):
        return Outline(inspect.getdoc(type(row)) or "")
    parameters = inspect.signature(row).parameters.values()
    about = inspect.getdoc(row) or inspect.getdoc(inspect.getmodule(row)) or ""
    return Outline(about, tuple(str(p) for p in parameters if p.name != "self"))


def _source(info: pkgutil.ModuleInfo, name: str) -> str:
    spec = info.module_finder.find_spec(name, None)
    loader: Any = spec.loader if spec else None
    return (loader.get_source(name) or "") if hasattr(loader, "get_source") else ""


def _outlined(module: ast.Module, table: str) -> dict[str, Outline] | None:
    """The rows of the literal `table`; None if it is not a literal, {} if it is missing."""
    things = _things(module)
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == table for target in targets):
            continue
        value = getattr(node, "value", None)
        if not isinstance(value, ast.Dict):
            return None
        rows = {}
        for key, row in zip(value.keys, value.values, strict=True):
            if not isinstance(key, ast.Constant):
                return None
            instance = isinstance(row, ast.Call)
            name = row.func if isinstance(row, ast.Call) else row
            thing = things.get(name.id) if isinstance(name, ast.Name) else None
            about = (ast.get_docstring(thing) if thing else "") or ast.get_docstring(module) or ""
            if isinstance(thing, ast.FunctionDef):
                rows[str(key.value)] = Outline(about, _arguments(thing))
            elif thing is not None and not instance:
                rows[str(key.value)] = Outline(about, _constructor(thing, module))
            else:  # an object
                rows[str(key.value)] = Outline(about)
        return rows
    return {}


def _things(module: ast.Module) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    return {node.name: node for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def _constructor(thing: ast.ClassDef, module: ast.Module) -> tuple[str, ...] | None:
    """Arguments of `__init__`, also if inherited from a class of this package."""
    for node in thing.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _arguments(node)
    if not thing.bases:
        return ()
    for base in thing.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        home = module if name in _things(module) else _imported(module, name)
        parent = _things(home).get(name) if home else None
        if (
            home
            and isinstance(parent, ast.ClassDef)
            and (signature := _constructor(parent, home)) is not None
        ):
            return signature
    return None


def _imported(module: ast.Module, name: str) -> ast.Module | None:
    """The module of this package from which `name` is imported."""
    package, _, _ = __name__.partition(".")
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            first, *rest = (node.module or "").split(".")
            file = Path(__file__).parent.joinpath(*rest).with_suffix(".py")
            if first == package and file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _arguments(function: ast.FunctionDef) -> tuple[str, ...]:
    """Arguments without `self`, in order, each with its type and default."""
    args = function.args
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    texts = []
    for arg, default in pairs:
        if arg.arg != "self":
            kind = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
            value = f" = {ast.unparse(default)}" if default else ""
            texts.append(f"{arg.arg}{kind}{value}")
    return tuple(texts)
