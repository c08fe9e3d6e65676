"""`tetravit list`: the menus."""

import fnmatch
import inspect
from typing import Annotated, Any

import typer

from tetravit.cli.base import (
    KINDS,
    MENUS,
    complete_kinds,
    complete_models,
    print_rows,
    print_table,
    recipe_files,
)
from tetravit.registry import discover, pick


def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.", autocompletion=complete_kinds),
    ],
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="[PATTERN]",
            help="Only names a shell pattern matches: 'gcvit_*'.",
            autocompletion=complete_models,
        ),
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List models, recipes, data sets and everything else that has a name."""
    kind = kind if kind in KINDS or f"{kind}s" not in KINDS else f"{kind}s"
    pick(dict.fromkeys(KINDS), kind, "kind of name")
    rows = [row for row in rows_of(kind) if fnmatch.fnmatch(row["name"], pattern)]
    if not rows and pattern != "*":
        raise ValueError(f"No {kind} match {pattern!r}. `tetravit list {kind}` shows all.")
    if as_json:
        print_rows(rows)
    elif kind == "models":
        _print_models(rows)
    else:
        print_table([kind, ""], [[row["name"], row["about"]] for row in rows])


def rows_of(kind: str) -> list[dict[str, Any]]:
    """What a menu offers, as JSON-ready rows."""
    if kind == "models":
        return [model_row(name) for name in _models()]
    if kind == "recipes":
        return [{"name": name, "about": _title(file.read_text())} for name, file in recipe_files().items()]
    return [{"name": name, "about": _about(row)} for name, row in sorted(discover(*MENUS[kind]).items())]


def model_row(name: str) -> dict[str, Any]:
    """A model in numbers, with the best published checkpoint trained on ImageNet-1k alone at that size."""
    from tetravit.benchmark.flops import counts
    from tetravit.models import family

    found = counts(name)
    return {
        "name": name,
        "family": family(name),
        "image_size": found.image_size,
        "params": found.params,
        "macs": found.macs,
        "flops": found.flops,
        **published(name),
    }


def published(name: str) -> dict[str, Any]:
    """Top-1 in percent, its source and the licence of the weights; None where nothing is published."""
    return {"top1": None, "source": None, "licence": None}


def _models() -> list[str]:
    from tetravit.models import list_models

    return list_models()


def _print_models(rows: list[dict[str, Any]]) -> None:
    columns = ["model", "size", "parameters", "GMACs", "top-1", "source", "licence of weights"]
    print_table(
        columns,
        [
            [
                row["name"],
                row["image_size"],
                f"{row['params'] / 1e6:.2f} M",
                f"{row['macs'] / 1e9:.2f}",
                None if row["top1"] is None else f"{row['top1']:.1f} %",
                row["source"],
                row["licence"],
            ]
            for row in rows
        ],
        right=["size", "parameters", "GMACs", "top-1"],
    )


def _about(row: object) -> str:
    """The first line of a row's docstring."""
    doc = inspect.getdoc(getattr(row, "func", row)) or ""
    return doc.partition("\n")[0]


def _title(recipe: str) -> str:
    """The first comment line of a recipe."""
    first = recipe.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
