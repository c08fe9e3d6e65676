"""`tetravit show`: everything about one name."""

import dataclasses
import itertools
import json
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from tetravit.cli.base import (
    MENUS,
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
from tetravit.registry import SYNONYMS, Outline, discover, outline, outlines, suggestion

# Sections of a recipe. A name that begins with one of them is a key.
SECTIONS = ("task", "evaluate", "model", "data", "optim", "run")


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A model, NAME.TAG, recipe, section or key of recipes, data set, ...",
            autocompletion=complete_models,
        ),
    ],
    size: Annotated[
        int | None, typer.Option(metavar="PX", help="Image side to count at; the paper's by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON objects.")] = False,
) -> None:
    """Show everything about one name: a model, weights, a recipe, a key of recipes, ..."""
    if name in recipe_files():
        _show_recipe(name, as_json)
        return
    for kind in MENUS:
        rows = menu(kind)
        if name in rows:
            row = rows[name]
            if row.options is None:  # inherited from outside this package
                row = outline(discover(*MENUS[kind][:2])[name])
            _show_row(kind.removesuffix("s"), name, row, as_json)
            return
    if name.partition(".")[0] in SECTIONS:
        _show_keys(name, as_json)
        return
    if "." in name and (row := _checkpoint(name)) is not None:
        _show_weights(row, as_json)
        return
    if name in SYNONYMS:
        raise ValueError(f"Unknown name {name!r}. Did you mean {SYNONYMS[name]!r}?")
    facts = model_facts(name, size)
    print_rows([facts]) if as_json else _print_model(facts)


def model_facts(name: str, size: int | None = None) -> dict[str, Any]:
    """A model in full: counts, pyramid, options, paper, checkpoints.

    Raises:
        ValueError: if there is no such model.
    """
    table = model_table()
    aliases = {alias: model for model, row in table.items() for alias in row["aliases"]}
    models = outlines("tetravit.backbones", "VARIANTS")
    if name not in models and name not in aliases:
        raise ValueError(f"Unknown name {name!r}.{suggestion(name, [*models, *aliases, *_other_names()])}")
    name = aliases.get(name, name)
    if size is None and name in table:
        row = table[name]
    else:
        from tetravit.benchmark.flops import count, description

        row = {**dataclasses.asdict(count(name, image_size=size)), **description(name, size)}
    return {
        "kind": "model",
        "name": name,
        "aliases": row["aliases"],
        "family": row["family"],
        "paper": row["paper"],
        "paper_size": row["paper_size"],
        "image_size": row["image_size"],
        "params": row["params"],
        "macs": row["macs"],
        "inference_macs": row["inference_macs"],
        "flops": 2 * row["macs"],
        "embed_dim": row["embed_dim"],
        "options": row["options"],
        "pyramid": row["pyramid"],
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
        ("in inference", f"{facts['inference_macs'] / 1e9:.2f} GMACs are computed for logits"),
        ("operations", f"{facts['flops'] / 1e9:.2f} GFLOPs, two per multiply-add"),
        ("embedding", f"{facts['embed_dim']} channels"),
        ("pyramid", "\n".join(shapes)),
        ("options", ", ".join(f"{key}={value}" for key, value in facts["options"].items())),
        ("weights", "\n".join(_checkpoint_line(c) for c in facts["checkpoints"]) or "none published"),
    ]
    print_table([facts["name"], ""], [line for line in lines if line[1]])


def _checkpoint_line(row: dict[str, Any]) -> str:
    size = f" at {row['image_size']} px" if row["image_size"] else ""
    return f"{row['name']}: {figures(row['published'])}{size} ({row['data']}; {row['licence']})"


def _show_row(kind: str, name: str, row: Outline, as_json: bool) -> None:
    options = list(row.options or ())
    if as_json:
        print_rows([{"kind": kind, "name": name, "about": row.about, "options": options}])
    else:
        lines = [("", row.about), ("options", "\n".join(options) or None)]
        print_table([name, f"({kind})"], [line for line in lines if line[1]])


def _checkpoint(name: str) -> Any:
    from tetravit.weights import CHECKPOINTS

    return CHECKPOINTS.get(name)


def _show_weights(row: Any, as_json: bool) -> None:
    """Published weights: model, scores, licence and sources."""
    facts = {
        **weights_row(row),
        "kind": "weights",
        "model": row.model,
        "head": row.head,
        "num_classes": row.num_classes,
        "measured": dict(row.measured),
        "measured_by": row.measured_by,
        "preprocess": dataclasses.asdict(row.preprocess) if row.preprocess else None,
        "urls": [source.url for source in row.sources],
    }
    if as_json:
        print_rows([facts])
        return
    prepared = facts["preprocess"] or {}
    lines = [
        ("model", " with head ".join(filter(None, (row.model, row.head)))),
        ("task", row.task),
        ("trained on", row.data),
        ("published", f"{figures(row.published)} ({row.published_in})" if row.published else None),
        ("measured", f"{figures(row.measured)} ({row.measured_by})" if row.measured else None),
        ("licence", row.licence + ("" if row.commercial else ", no commercial use")),
        ("preprocessing", ", ".join(f"{key}={value}" for key, value in prepared.items())),
        ("from", "\n".join(facts["urls"])),
        ("use", f'tetravit predict {row.name} IMAGE, tetravit.load("{row.name}")'),
    ]
    print_table([row.name, "(weights)"], [line for line in lines if line[1]])


def _show_recipe(name: str, as_json: bool) -> None:
    """The comment at the top of a recipe, and every key with value, origin and description."""
    text = recipe_files()[name].read_text(encoding="utf-8")
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    about = "\n".join(line.removeprefix("#").strip() for line in head)
    rows = _recipe_rows(name)
    if as_json:
        print_rows([{"kind": "recipe", "name": name, "about": about, "text": text, "keys": rows}])
        return
    print(about)
    columns = ("key", "value", "origin", "about")
    print_table([*columns[:3], ""], [[row[column] for column in columns] for row in rows])
    if "[variants" in text:
        say("Some models have values of their own: the section variants of the file.")
    say(f"`tetravit copy {name} FILE` copies it; `tetravit train {name} KEY=VALUE` changes a key.")


def _recipe_rows(name: str) -> list[dict[str, str]]:
    """Every key of a recipe: its value, where that was set, and what the key means."""
    from tetravit.recipe import entries, find, load

    rows = entries(load(find(name)))
    return [
        {"key": row.key, "value": _text(row.value), "origin": row.origin, "about": row.description}
        for row in rows
    ]


def _show_keys(name: str, as_json: bool) -> None:
    """A section of recipes, or one key: type, default and meaning."""
    section, _, key = name.partition(".")
    rows = _rows(section)
    if key and name not in rows:
        raise ValueError(f"Unknown recipe key {name!r}.{suggestion(name, rows)}")
    chosen = [rows[name]] if key else list(rows.values())
    if as_json:
        print_rows(chosen)
        return
    columns = ("key", "type", "default", "about")
    print_table([*columns[:3], ""], [[row[column] for column in columns] for row in chosen])


def _rows(section: str) -> dict[str, dict[str, str]]:
    """Every key of a section by its dotted name; keys that one task or protocol reads name it."""
    from tetravit.recipe import Recipe

    shared: Any = Recipe.model_fields[section].annotation
    menus = {"task": ("tetravit.tasks", "TASKS"), "evaluate": ("tetravit.protocols", "PROTOCOLS")}
    others = discover(*menus[section]) if section in menus else {}
    readers: dict[str, list[str]] = {}
    fields = dict(shared.model_fields)
    for owner, row in others.items():
        for key, info in row.Config.model_fields.items():
            if key not in shared.model_fields:
                fields.setdefault(key, info)
                readers.setdefault(key, []).append(owner)
    rows = {}
    for key, info in fields.items():
        default = "required" if info.is_required() else _text(info.get_default(call_default_factory=True))
        owners = f"({', '.join(readers[key])})" if key in readers else ""
        about = " ".join(filter(None, (info.description, owners)))
        rows[f"{section}.{key}"] = {
            "key": f"{section}.{key}",
            "type": _type(info.annotation),
            "default": default,
            "about": about,
        }
    return rows


def _text(value: Any) -> str:
    """A value in TOML; unset: a dash."""
    return (
        "-" if value is None else value or '""' if isinstance(value, str) else json.dumps(value, default=str)
    )


def _type(annotation: Any) -> str:
    """A type in readable form: int, "cosine" | "poly", (float, float)."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type(arguments[0])
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, arguments))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(_type(part) for part in arguments if part is not NoneType)
    return getattr(annotation, "__name__", str(annotation)) if not arguments else str(annotation)


def _other_names() -> list[str]:
    return [*recipe_files(), *(name for kind in MENUS for name in menu(kind)), *SECTIONS]


VERBS = {"show": show}
