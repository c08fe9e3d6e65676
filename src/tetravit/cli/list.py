"""`tetravit list`: print the menus."""

import fnmatch
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tetravit.cli.base import (
    KINDS,
    complete_kinds,
    complete_models,
    figures,
    menu,
    model_table,
    print_rows,
    print_table,
    recipe_files,
    say,
    weights_row,
)
from tetravit.registry import outlines, pick


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help=f"One of {', '.join(KINDS)}.", autocompletion=complete_kinds),
    ] = None,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="[PATTERN]",
            help="Only names a shell pattern matches: 'gcvit_*'.",
            autocompletion=complete_models,
        ),
    ] = "*",
    commercial_ok: Annotated[
        bool,
        typer.Option(
            "--commercial-ok",
            help="Only weights, and models with weights, whose licence allows commercial use.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List models, weights, recipes and the other menus."""
    if kind is None:
        rows = [{"name": name, "about": about} for name, about in KINDS.items()]
        if as_json:
            print_rows(rows)
        else:
            print_table(["kind", ""], [[row["name"], row["about"]] for row in rows])
            say("`tetravit list KIND` shows the names, `tetravit show NAME` everything about one.")
        return
    kind = kind if kind in KINDS or f"{kind}s" not in KINDS else f"{kind}s"
    pick(dict.fromkeys(KINDS), kind, "kind of name")
    if commercial_ok and kind not in ("models", "weights"):
        raise ValueError(f"--commercial-ok is for models and weights; got {kind}.")
    rows = [row for row in rows_of(kind) if fnmatch.fnmatch(row["name"], pattern)]
    if commercial_ok:
        rows = [row for row in rows if row["commercial"]]
    if not rows and pattern != "*":
        raise ValueError(f"No {kind} match {pattern!r}. `tetravit list {kind}` shows all.")
    if as_json:
        print_rows(rows)
    elif not rows:
        say(f"There are no {kind} yet.")
    elif kind == "models":
        _print_models(rows)
    elif kind == "weights":
        _print_weights(rows)
    else:
        print_table([kind, ""], [[row["name"], row["about"]] for row in rows])


def rows_of(kind: str) -> list[dict[str, Any]]:
    """The rows of a menu, JSON-ready."""
    if kind == "models":
        return [model_row(name) for name in sorted(outlines("tetravit.backbones", "VARIANTS"))]
    if kind == "weights":
        return [weights_row(checkpoint) for _, checkpoint in sorted(_weights().items())]
    if kind == "recipes":
        return [{"name": name, "about": _title(file.read_text())} for name, file in recipe_files().items()]
    return [{"name": name, "about": row.about.partition("\n")[0]} for name, row in sorted(menu(kind).items())]


def model_row(name: str) -> dict[str, Any]:
    """A model's sizes and its published accuracy."""
    row = model_table().get(name) or _counted(name)
    return {
        "name": name,
        "family": row["family"],
        "image_size": row["image_size"],
        "params": row["params"],
        "macs": row["macs"],
        "inference_macs": row["inference_macs"],
        "flops": 2 * row["macs"],
        **published(name, row["image_size"]),
    }


def _counted(name: str) -> dict[str, Any]:
    """The same row for a model that is not in the stored table."""
    from tetravit.benchmark.flops import count, description

    counts = count(name)
    return {**asdict(counts), **description(name)}


def published(name: str, image_size: int) -> dict[str, Any]:
    """Published top-1 in percent at that size, with its source, the licence of the weights, and whether it allows
    commercial use.

    Of several checkpoints, the one trained on ImageNet-1k only; None if none is published.
    """
    rows = [
        c
        for c in _weights().values()
        if c.model == name and "top1" in c.published and c.preprocess and c.preprocess.size == image_size
    ]
    best = next((c for c in rows if c.data == "ImageNet-1k"), rows[0] if rows else None)
    return {
        "weights": best and best.name,
        "top1": best and best.published["top1"],
        "source": best and best.published_in,
        "licence": best and best.licence,
        "commercial": best and best.commercial,
    }


def _weights() -> dict[str, Any]:
    from tetravit.weights import CHECKPOINTS

    return CHECKPOINTS


def _print_weights(rows: list[dict[str, Any]]) -> None:
    columns = ["weights", "task", "trained on", "size", "published", "source", "licence"]
    print_table(
        columns,
        [
            [
                row["name"],
                row["task"],
                row["data"],
                row["image_size"],
                figures(row["published"]),
                row["source"],
                row["licence"],
            ]
            for row in rows
        ],
        right=["size"],
    )


def _print_models(rows: list[dict[str, Any]]) -> None:
    columns = ["model", "size", "parameters", "GMACs", "inference", "top-1", "source", "licence of weights"]
    print_table(
        columns,
        [
            [
                row["name"],
                row["image_size"],
                f"{row['params'] / 1e6:.2f} M",
                f"{row['macs'] / 1e9:.2f}",
                f"{row['inference_macs'] / 1e9:.2f}",
                None if row["top1"] is None else f"{row['top1']:.1f} %",
                row["source"],
                row["licence"],
            ]
            for row in rows
        ],
        right=["size", "parameters", "GMACs", "inference", "top-1"],
    )


def _title(recipe: str) -> str:
    """The first comment line of a recipe."""
    first = recipe.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


VERBS = {"list": list_}
