"""`tetravit show`: details of one name."""

import dataclasses
import itertools
import json
import tomllib
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from tetravit.cli.base import (
    MENUS,
    PACKAGE,
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
from tetravit.recipe_tables import leaves, merged
from tetravit.registry import SYNONYMS, Outline, discover, outline, outlines, suggestion

# Sections of a recipe; a name of the form SECTION.X is a key.
KEYS = PACKAGE / "recipes" / "keys.json"  # `python -m tetravit.cli.show` writes it
OWNERS = {"task": ("tetravit.tasks", "TASKS"), "evaluate": ("tetravit.protocols", "PROTOCOLS")}
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
        int | None, typer.Option(metavar="PX", help="Image side for the counts; default: the paper's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON objects.")] = False,
) -> None:
    """Show the details of one name: a model, weights, a recipe, a key of recipes, ..."""
    if name in recipe_files():
        _show_recipe(name, as_json)
        return
    for kind in MENUS:
        rows = menu(kind)
        if name in rows:
            row = rows[name]
            if row.options is None:  # inherits a constructor from outside this package
                package, tables, _ = MENUS[kind]
                row = next(outline(d[name]) for t in tables.split() if name in (d := discover(package, t)))
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
        ValueError: for an unknown model.
    """
    table = model_table()
    aliases = {alias: model for model, row in table.items() for alias in row["aliases"]}
    models = outlines("tetravit.backbones", "VARIANTS")
    if name not in models and name not in aliases:
        near = suggestion(name, [*models, *aliases, *_other_names()])
        raise ValueError(f"Unknown name {name!r}.{near or ' `tetravit list` shows what has a name.'}")
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
    """The header comment of a recipe, and every key with value, origin and description."""
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
    """Every key of a recipe: value, origin and description."""
    keys = _stored_keys()
    return recipe_rows(name) if keys is None else _rows_of_file(name, keys)


def _rows_of_file(name: str, keys: dict[str, Any]) -> list[dict[str, str]]:
    """The same from the recipe file and the stored table of keys, without torch."""
    table = tomllib.loads(recipe_files()[name].read_text(encoding="utf-8"))
    variants = table.pop("variants", {})
    origins = dict.fromkeys(leaves(table), "recipe")
    model = table["model"]["name"]
    own = variants.get(model, {})
    table = merged(table, own)
    origins |= dict.fromkeys(leaves(own), "variant")
    task = table["task"]["name"]
    protocol = table.get("evaluate", {}).get("protocol") or keys["protocols"][task]
    owners = {"task": task, "evaluate": protocol}
    rows = []
    for section, classes in keys["classes"].items():
        for key, kind, default, about in classes[owners.get(section, "")]:
            path = f"{section}.{key}" if section else key
            value = (table.get(section, {}) if section else table).get(key, default)
            if path == "evaluate.protocol":
                value = protocol
            if kind == "float" and isinstance(value, int):
                value = float(value)
            given = [o for k, o in origins.items() if k == path or k.startswith(f"{path}.")]
            origin = "variant" if "variant" in given else "recipe" if given else "default"
            rows.append({"key": path, "value": _text(value), "origin": origin, "about": about})
    return rows


def _stored_keys() -> dict[str, Any] | None:
    """The stored table of keys; None if a task or protocol was added that is not in it."""
    keys: dict[str, Any] = json.loads(KEYS.read_text(encoding="utf-8"))
    named = {section: sorted(outlines(*menu)) for section, menu in OWNERS.items()}
    return keys if keys["owners"] == named else None


def described_keys() -> dict[str, Any]:
    """The table of keys, from the classes of the recipe sections."""
    from tetravit.protocols import PROTOCOLS
    from tetravit.recipe import Recipe, sections
    from tetravit.tasks import TASKS

    read = sections()
    rows: dict[str, Any] = {"task": TASKS, "evaluate": PROTOCOLS}

    def listed(model: Any, names: Any = None) -> list[Any]:
        return [
            [
                key,
                _type(info.annotation),
                None if info.is_required() else to_json(info.get_default(call_default_factory=True)),
                info.description or "",
            ]
            for key, info in model.model_fields.items()
            if names is None or key in names
        ]

    classes: dict[str, dict[str, Any]] = {"": {"": listed(Recipe, set(Recipe.model_fields) - set(read))}}
    for section, models in read.items():
        owned = {name: listed(row.Config) for name, row in rows.get(section, {}).items()}
        classes[section] = owned or {"": listed(models[0])}
    return {
        "owners": {section: sorted(outlines(*menu)) for section, menu in OWNERS.items()},
        "protocols": {name: row.protocol for name, row in TASKS.items()},
        "classes": classes,
        "sections": {section: live_rows(section) for section in SECTIONS},
    }


def to_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def recipe_rows(name: str) -> list[dict[str, str]]:
    """The same from the parsed recipe, which imports torch."""
    from tetravit.recipe import entries, find, load

    rows = entries(load(find(name)))
    return [
        {"key": row.key, "value": _text(row.value), "origin": row.origin, "about": row.description}
        for row in rows
    ]


def _show_keys(name: str, as_json: bool) -> None:
    """A section of recipes, or one key: type, default and description."""
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
    keys = _stored_keys()
    rows: dict[str, dict[str, str]] = keys["sections"][section] if keys is not None else live_rows(section)
    return rows


def live_rows(section: str) -> dict[str, dict[str, str]]:
    """Every key of a section by its dotted name; keys of a single task or protocol name their owners."""
    from tetravit.recipe import Recipe

    shared: Any = Recipe.model_fields[section].annotation
    others = discover(*OWNERS[section]) if section in OWNERS else {}
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
    """A value in TOML; a dash for unset."""
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
    if get_origin(annotation) is tuple:
        inner = [_type(argument) for argument in arguments if argument is not ...]
        return f"list of {inner[0]}" if ... in arguments else f"[{', '.join(inner)}]"
    if get_origin(annotation) is list:
        return f"list of {_type(arguments[0])}"
    if get_origin(annotation) is dict:
        return "table"
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(_type(part) for part in arguments if part is not NoneType)
    return getattr(annotation, "__name__", str(annotation)) if not arguments else str(annotation)


def _other_names() -> list[str]:
    return [*recipe_files(), *(name for kind in MENUS for name in menu(kind)), *SECTIONS]


VERBS = {"show": show}

if __name__ == "__main__":
    KEYS.write_text(json.dumps(described_keys(), indent=1) + "\n", encoding="utf-8")
