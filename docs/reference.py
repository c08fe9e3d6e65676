"""The pages of the reference, written from the code: commands, keys, names, models, the Python interface."""

import inspect
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src" / "tetravit"
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Source")
HIDDEN = (
    "root: ",
    "split: ",
    "model: ",
    "config: ",
    "data: ",
    "span: ",
    "channels: Seq",
    "strides: ",
    "num_classes: int'",
)
BRIDGES = {
    "tetravit.bridges.grad_cam": ("cam_target",),
    "tetravit.bridges.ray": ("train_on_ray",),
    "tetravit.bridges.transformers": (
        "TetravitConfig",
        "TetravitImageProcessor",
        "TetravitForImageClassification",
        "TetravitForObjectDetection",
        "TetravitForSemanticSegmentation",
        "TetravitBackbone",
    ),
}


def cell(text: object) -> str:
    """Text inside a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table; nothing where there are no rows."""
    lines = [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    rule = "".join("--:|" if column.startswith(">") else "---|" for column in columns)
    head = " | ".join(column.removeprefix(">") for column in columns)
    return [f"| {head} |", f"|{rule}", *lines, ""] if lines else []


def commands() -> str:
    """Every verb with its arguments and options."""
    import typer

    from tetravit.cli.app import application

    lines = [
        "# Commands",
        "",
        "`tetravit --help` and `tetravit VERB --help` print the same. Exit code 0: done; 1: a check failed; 2: a"
        " mistake, in one line; 75: interrupted, everything is saved.",
        "",
    ]

    def add(command: Any, name: str) -> None:
        subcommands = getattr(command, "commands", {})
        about = inspect.cleandoc(command.help or "").replace("\f", "")
        if name == "tetravit":
            lines.extend(table(("option", "meaning"), _options(command)))
        elif subcommands:
            lines.extend([f"## tetravit {name}", "", about, ""])
        else:
            lines.extend([f"{'###' if ' ' in name else '##'} tetravit {name}", "", about, ""])
            lines.extend(table(("argument or option", "meaning"), _parameters(command)))
        for word, sub in subcommands.items():
            add(sub, word if name == "tetravit" else f"{name} {word}")

    add(typer.main.get_command(application()), "tetravit")
    return "\n".join(lines)


def _options(command: Any) -> list[tuple[str, str]]:
    return [(_names(option), option.help or "") for option in command.params]


def _parameters(command: Any) -> list[tuple[str, str]]:
    rows = []
    for option in command.params:
        default = "" if option.default in (None, False, "", [], ()) else f" Default: {option.default}."
        rows.append((_names(option), f"{option.help or ''}{default}"))
    return rows


def _names(option: Any) -> str:
    """`--into DIR`, `-h`, or the name of an argument."""
    if not option.opts[0].startswith("-"):
        return f"`{option.metavar or option.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"{names} {option.metavar}" if option.metavar else names


def keys() -> str:
    """Every key of a recipe with type, default and meaning."""
    stored = json.loads((SOURCE / "recipes" / "keys.json").read_text(encoding="utf-8"))
    lines = [
        "# Keys of recipes",
        "",
        "A recipe is a TOML file; a key of a section is changed with `section.key=value` on the command line."
        " `tetravit show KEY` explains one; `tetravit show RECIPE` prints all with their values. Keys of `[task]` and"
        " `[evaluate]` depend on the task and the protocol that are chosen.",
        "",
    ]
    columns = ("key", "type", "default", "meaning")
    lines += [
        "## Length",
        "",
        *table(
            columns,
            (
                (f"`{key}`", kind, _value(default), about)
                for key, kind, default, about in stored["classes"][""][""]
            ),
        ),
        "",
    ]
    for section, rows in stored["sections"].items():
        lines += [f"## {section}", ""]
        lines += table(
            columns, ((f"`{row['key']}`", row["type"], row["default"], row["about"]) for row in rows.values())
        )
    return "\n".join(lines)


def _value(default: object) -> str:
    return "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def names() -> str:
    """Recipes, and every menu but the data sets: heads, augmentations, tasks, optimizers, ..."""
    from tetravit.cli.base import MENUS, menu
    from tetravit.cli.list import rows_of

    lines = [
        "# Names",
        "",
        "What recipes and commands may name. `tetravit list KIND` and `tetravit show NAME` print the same.",
        "",
    ]
    lines += [
        "## recipes",
        "",
        "`tetravit train NAME`; `tetravit copy NAME FILE` makes a recipe of your own.",
        "",
    ]
    lines += table(
        ("recipe", "procedure"), ((f"`{row['name']}`", row["about"]) for row in rows_of("recipes"))
    )
    for kind, (_, _, about) in MENUS.items():
        if kind == "datasets":
            continue
        lines += [f"## {kind}", "", f"{about[0].upper()}{about[1:]}.", ""]
        for name, row in sorted(menu(kind).items()):
            lines += [f"### {name}", "", *text_of(row.about), *options_of(row.options or ())]
    lines += ["## datasets", "", "[Data layouts](../layouts.md) has each with a tree.", ""]
    return "\n".join(lines)


def options_of(options: Sequence[str]) -> list[str]:
    """The options of a row that a user sets, as one line of code."""
    shown = [option for option in options if not f"{option}'".startswith(HIDDEN)]
    return ["Options: " + ", ".join(f"`{option}`" for option in shown), ""] if shown else []


def layout_options(name: str) -> str:
    """The options of a data set with their meanings, for docs/layouts.md."""
    from tetravit.cli.base import menu

    row = menu("datasets")[name]
    meanings = dict(_arguments(row.about))
    rows = []
    for option in row.options or ():
        if option.startswith(("root: ", "split: ", "parts: ", "channels: ")):
            continue
        key, _, rest = option.partition(": ")
        kind, _, default = rest.partition(" = ")
        kind = " or ".join(part for part in kind.split(" | ") if part != "None")
        default = "" if default == "None" else default.strip("'") or ("" if not default else '""')
        rows.append((f"`{key}`", kind, default, meanings.get(key, "")))
    return "\n".join(table(("`data.options`", "type", "default", "meaning"), rows))


def models() -> str:
    """Every model with its figures, and every set of published weights with its licence."""
    from tetravit.cli.list import model_row
    from tetravit.registry import outlines
    from tetravit.weights import CHECKPOINTS

    lines = [
        "# Models",
        "",
        "Parameters with 1000 classes, multiply-adds at the paper's image size; top-1 in percent as the authors"
        " report it, trained on ImageNet-1k alone where there is such a checkpoint. `tetravit show NAME` has pyramid,"
        " options and weights of a model.",
        "",
    ]
    rows = [model_row(name) for name in sorted(outlines("tetravit.backbones", "VARIANTS"))]
    columns = ("model", ">pixels", ">parameters, M", ">GMACs", ">top-1", "licence of the weights")
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        lines += [f"## {family}", ""]
        lines += table(
            columns,
            (
                (
                    f"`{row['name']}`",
                    row["image_size"],
                    f"{row['params'] / 1e6:.1f}",
                    f"{row['macs'] / 1e9:.1f}",
                    "" if row["top1"] is None else f"{row['top1']:.1f}",
                    row["licence"] or "",
                )
                for row in mine
            ),
        )
    lines += [
        "## Published weights",
        "",
        "Figures as their authors report them. Weights under CC-BY-NC-SA-4.0 may not be used commercially.",
        "",
    ]
    lines += table(
        ("weights", "task", "data", "published", "licence"),
        (
            (
                f"`{name}`",
                row.task,
                row.data,
                ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in row.published.items()),
                row.licence,
            )
            for name, row in CHECKPOINTS.items()
        ),
    )
    return "\n".join(lines)


def python() -> str:
    """The public names with their signatures and docstrings."""
    import tetravit

    lines = [
        "# Python",
        "",
        "The names of `tetravit`; `import tetravit` loads no torch, a name does when it is first used. Functions and"
        " classes of other modules may change between versions.",
        "",
    ]
    for name in tetravit.__all__:
        if not name.startswith("__"):
            lines += _described(f"tetravit.{name}", name, getattr(tetravit, name))
    lines += [
        "## Bridges",
        "",
        "Imported by name; each needs its library. [Other libraries](../bridges.md) shows their use.",
        "",
    ]
    for module, members in BRIDGES.items():
        with suppress(ImportError):
            found = __import__(module, fromlist=members)
            for name in members:
                lines += _described(
                    f"{module}.{name}", name, getattr(found, name), level="###", methods=False
                )
    return "\n".join(lines)


def _described(path: str, name: str, value: Any, level: str = "##", *, methods: bool = True) -> list[str]:
    lines = [f"{level} {path}", ""]
    if callable(value):
        with suppress(ValueError):
            lines += ["```python", f"{name}{_signature(value)}", "```", ""]
    lines += text_of(inspect.getdoc(value) or "")
    if inspect.isclass(value) and methods:
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if not method.startswith("_") and method in vars(value) and function.__doc__:
                lines += [
                    f"### {name}.{method}",
                    "",
                    "```python",
                    f"{method}{_signature(function)}",
                    "```",
                    "",
                ]
                lines += text_of(inspect.getdoc(function) or "")
    return lines


def _signature(value: Any) -> str:
    """A signature with short names of types, one parameter a line where it is long."""
    text = re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", str(inspect.signature(value))).replace("pathlib.", "")
    text = re.sub(r"<function (\w+)[^>]*>", r"\1", text)
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    text = re.sub(r"^\(self(?:, )?", "(", text)
    if len(text) <= 90:
        return text
    inside, _, after = text.rpartition(")")
    parts = _split(inside.removeprefix("("))
    return "(\n" + "".join(f"    {part},\n" for part in parts) + ")" + after


def _split(text: str) -> list[str]:
    """Parameters at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text[start:].strip() else parts


def text_of(docstring: str) -> list[str]:
    """A docstring in Google's sections as Markdown: paragraphs, and lists of arguments and errors."""
    lines: list[str] = []
    blocks = re.split(rf"^({'|'.join(SECTIONS)}):[ \t]*", inspect.cleandoc(docstring), flags=re.M)
    lines += [_body(blocks[0].strip()), ""]
    for section, body in zip(blocks[1::2], blocks[2::2], strict=True):
        items = _items(body) if section in ("Args", "Raises") else []
        if items:
            lines += [f"**{section}**", "", *(f"- `{name}`: {_plain(about)}" for name, about in items), ""]
        else:
            lines += [f"**{section}**: {_plain(inspect.cleandoc(body).strip())}", ""]
    return lines


def _body(text: str) -> str:
    """Paragraphs; lines that describe an argument, `name: text`, become a list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        start = re.match(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)", line)
        if start:
            lines += [] if inside else [""]
            lines.append(f"- `{start[1]}`: {start[2]}")
            inside = True
        elif inside and line.startswith(" "):
            lines[-1] += f" {line.strip()}"
        else:
            lines += ["", line] if inside else [line]
            inside = False
    return _plain("\n".join(lines))


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")


def _arguments(docstring: str) -> list[tuple[str, str]]:
    """Each argument of a docstring with its meaning; those described together each have it."""
    blocks = re.split(rf"^({'|'.join(SECTIONS)}):[ \t]*", inspect.cleandoc(docstring), flags=re.M)
    found = []
    for section, body in zip(blocks[1::2], blocks[2::2], strict=True):
        if section == "Args":
            found += [(name.strip(), about) for names, about in _items(body) for name in names.split(",")]
    return found


def _items(body: str) -> list[tuple[str, str]]:
    """`name: text` items of a section, whose further lines are indented."""
    items: list[tuple[str, str]] = []
    for line in inspect.cleandoc(body).splitlines():
        start = re.match(r"([\w*, .]+): (.*)", line)
        if start and not line.startswith(" "):
            items.append((start[1], start[2]))
        elif items and line.strip():
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
    return items


PAGES = {"commands": commands, "keys": keys, "names": names, "models": models, "python": python}
