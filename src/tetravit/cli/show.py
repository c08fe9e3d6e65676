"""`tetravit show`: everything about one name."""

import inspect
from typing import Annotated, Any

import typer

from tetravit.cli.base import (
    MENUS,
    complete_models,
    figures,
    print_rows,
    print_table,
    recipe_files,
    weights_row,
)
from tetravit.registry import discover, suggestion


def show(
    name: Annotated[
        str, typer.Argument(help="A model, recipe, data set, ... by name.", autocompletion=complete_models)
    ],
    size: Annotated[
        int | None, typer.Option(metavar="PX", help="Image side to count at; the paper's by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show all that is known of one name: a model, a recipe, ..."""
    if name in recipe_files():
        text = recipe_files()[name].read_text(encoding="utf-8")
        print_rows([{"kind": "recipe", "name": name, "text": text}]) if as_json else print(text, end="")
        return
    for kind, menu in MENUS.items():
        rows = discover(*menu)
        if name in rows:
            _show_row(kind.removesuffix("s"), name, rows[name], as_json)
            return
    facts = model_facts(name, size)
    print_rows([facts]) if as_json else _print_model(facts)


def model_facts(name: str, size: int | None = None) -> dict[str, Any]:
    """A model in full: counts, pyramid, options, paper, checkpoints."""
    import torch

    from tetravit.backbones import ALIASES, VARIANTS
    from tetravit.benchmark.flops import count, paper_size
    from tetravit.models import create_backbone, family, resolve

    if name not in VARIANTS and name not in ALIASES:
        known = [*VARIANTS, *ALIASES, *_other_names()]
        raise ValueError(f"Nothing is called {name!r}.{suggestion(name, known)}")
    name = resolve(name)
    row = VARIANTS[name]
    counted = count(name, image_size=size)
    side = counted.image_size
    with torch.device("meta"):
        pyramid = create_backbone(name, image_size=side).eval()
        maps = pyramid(torch.empty(1, 3, side, side))
    module = inspect.getmodule(row.func)
    return {
        "kind": "model",
        "name": name,
        "aliases": sorted(alias for alias, target in ALIASES.items() if target == name),
        "family": family(name),
        "paper": " ".join((inspect.getdoc(module) or "").partition("\n\n")[0].split()),
        "paper_size": paper_size(name),
        "image_size": side,
        "params": counted.params,
        "macs": counted.macs,
        "flops": counted.flops,
        "embed_dim": pyramid.backbone.embed_dim,
        "options": dict(row.keywords),
        "pyramid": [
            {"stride": stride, "shape": list(m.shape[1:])}
            for stride, m in zip(pyramid.strides, maps, strict=True)
        ],
        "checkpoints": checkpoints(name),
    }


def checkpoints(name: str) -> list[dict[str, Any]]:
    """Published weights of a model."""
    from tetravit.weights import CHECKPOINTS

    return [weights_row(c) for c in CHECKPOINTS.values() if c.model == name]


def _print_model(facts: dict[str, Any]) -> None:
    side = facts["image_size"]
    shapes = [
        f"{c} x {h} x {w} at stride {p['stride']}" for p in facts["pyramid"] for c, h, w in [p["shape"]]
    ]
    lines = [
        ("paper", facts["paper"]),
        ("also called", ", ".join(facts["aliases"]) or None),
        ("parameters", f"{facts['params']:,} with a head of 1000 classes"),
        ("multiply-adds", f"{facts['macs'] / 1e9:.2f} GMACs at {side} x {side} pixels"),
        ("operations", f"{facts['flops'] / 1e9:.2f} GFLOPs, two per multiply-add"),
        ("embedding", f"{facts['embed_dim']} channels"),
        ("pyramid", "\n".join(shapes)),
        ("options", ", ".join(f"{key}={value}" for key, value in facts["options"].items())),
        ("weights", "\n".join(_checkpoint_line(c) for c in facts["checkpoints"]) or "none known"),
    ]
    print_table([facts["name"], ""], [line for line in lines if line[1]])


def _checkpoint_line(row: dict[str, Any]) -> str:
    size = f" at {row['image_size']} px" if row["image_size"] else ""
    return f"{row['name']}: {figures(row['published'])}{size} ({row['data']}; {row['licence']})"


def _show_row(kind: str, name: str, row: Any, as_json: bool) -> None:
    function = getattr(row, "func", row)
    about = inspect.getdoc(function) or ""
    options = [str(p) for p in inspect.signature(function).parameters.values() if p.name != "self"]
    if as_json:
        print_rows([{"kind": kind, "name": name, "about": about, "options": options}])
    else:
        print_table([name, f"({kind})"], [("", about), ("options", "\n".join(options) or None)])


def _other_names() -> list[str]:
    return [*recipe_files(), *(name for menu in MENUS.values() for name in discover(*menu))]


VERBS = {"show": show}
