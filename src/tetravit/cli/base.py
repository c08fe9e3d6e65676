"""Shared by the verbs: printing, menus, shell completion.

Nothing here imports torch.
"""

import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from tetravit.registry import Outline, outlines, pick

Model = TypeVar("Model")

RULE = "\u2500"  # box-drawing line
WIDE = 240  # table width in a pipe or a file, wide enough to avoid truncation
APART = 2.0  # seconds between lines of the same step
PACKAGE = Path(__file__).parents[1]
WEIGHTS = (
    ".safetensors",
    ".pth",
    ".pt",
    ".ckpt",
    ".bin",
    ".npz",
)  # extensions of weights, not of exported files

MENUS = {  # kind: package, table, description
    "heads": ("tetravit.heads", "HEADS", "heads of classifiers, detectors and segmenters: model.head"),
    "datasets": ("tetravit.data.datasets", "DATASETS", "layouts of images on disk: data.name"),
    "transforms": ("tetravit.data.transforms", "TRANSFORMS", "augmentations: data.augment"),
    "tasks": ("tetravit.tasks", "TASKS", "training methods: task.name"),
    "optimizers": ("tetravit.engine.optimizers", "OPTIMIZERS", "optim.name"),
    "schedules": ("tetravit.engine.schedules", "SCHEDULES", "learning rate schedules: optim.schedule"),
    "protocols": ("tetravit.protocols", "PROTOCOLS", "evaluation protocols: evaluate.protocol"),
    "methods": (
        "tetravit.explainers",
        "EXPLAIN",
        "attention and attribution maps: tetravit explain --method",
    ),
    "studies": ("tetravit.studies", "STUDIES", "tables and figures of the papers: tetravit study"),
    "runtimes": ("tetravit.runtimes", "BACKENDS", "inference backends: tetravit.optimize"),
    "exports": (
        "tetravit.exports",
        "TARGETS FOLDERS",
        "file formats for other programs: tetravit export",
    ),
}
KINDS = {
    "models": "backbones with published sizes",
    "weights": "published checkpoints, with figures and licences",
    "recipes": "training recipes: tetravit train RECIPE",
    **{kind: about for kind, (_, _, about) in MENUS.items()},
}


class Group(NamedTuple):
    """Several verbs in one group: `tetravit weights fetch`.

    verbs: or a function that returns them, if that needs slow imports that the top-level help avoids.
    """

    help: str
    verbs: dict[str, Callable[..., None]] | Callable[[], dict[str, Callable[..., None]]]


AcceptLicense = Annotated[
    bool,
    typer.Option("--accept-license", help="Accept a licence that forbids commercial use; once per licence."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run an exported file that can hold code (.pt2); only files of a source that you trust.",
    ),
]


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line, in ASCII: file names may have bytes that are not valid text."""
    for row in rows:
        print(json.dumps(row), flush=True)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    right: Sequence[str] = (),
) -> None:
    """A table on standard output; the columns in `right` are numeric and align right."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    texts = [[*row, *[""] * (len(columns) - len(row))] for row in texts]  # short rows
    plain = None if sys.stdout.isatty() else _plain_table(columns, texts, title, right)
    if plain is not None:
        print(plain)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    for row in texts:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDE
    Console(file=sys.stdout, width=width, markup=False, highlight=False).print(table)


def _plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None, right: Sequence[str]
) -> str | None:
    """The lines that rich would print, without its slow import; None if they need wrapping or width measurement."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    total = sum(widths) + 3 * len(widths) - 1
    everything = "".join([title or "", *columns, *(text for row in rows for text in row)])
    if total > WIDE or len(title or "") > total or not everything.isascii() or not everything.isprintable():
        return None

    def line(cells: Sequence[str]) -> str:
        places = zip(columns, cells, widths, strict=True)
        padded = [cell.rjust(width) if name in right else cell.ljust(width) for name, cell, width in places]
        return f" {'   '.join(padded)} "

    head = [*([title.ljust(total)] if title else []), " " * total, line(columns), f" {RULE * (total - 2)} "]
    return "\n".join([*head, *map(line, rows), " " * total])


def say(text: str) -> None:
    """A message on standard error."""
    print(text, file=sys.stderr, flush=True)


def weights_row(checkpoint: Any) -> dict[str, Any]:
    """A published checkpoint, JSON-ready; scores in percent."""
    return {
        "name": checkpoint.name,
        "task": checkpoint.task,
        "data": checkpoint.data,
        "image_size": checkpoint.preprocess and checkpoint.preprocess.size,
        "published": dict(checkpoint.published),
        "source": checkpoint.published_in,
        "licence": checkpoint.licence,
        "commercial": checkpoint.commercial,
    }


def figures(published: Mapping[str, float]) -> str:
    """Published scores in words: "44.5 box ap, 40.3 mask ap"."""
    return ", ".join(f"{value:.1f} {name.replace('_', ' ')}" for name, value in published.items())


@contextmanager
def announcing() -> Iterator[Callable[[str], object]]:
    """Yields a function that prints a line on standard error, also while that is redirected.

    Of lines that are equal up to a colon, such as those of many batches, one every `APART` seconds is printed.
    """
    try:
        stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, AttributeError):  # no descriptor: a test, a notebook, a process without standard error
        stream = None
    last, when = "", 0.0

    def announce(line: str) -> None:
        nonlocal last, when
        start, now = line.partition(":")[0], time.monotonic()
        if start != last or now - when >= APART:
            print(f"{line} ...", file=stream or kept, flush=True)
            last, when = start, now

    kept = sys.stderr
    try:
        yield announce
    finally:
        if stream is not None:
            stream.close()


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], object]]:
    """Show a progress bar on standard error, on a terminal only. Yields a function of done and total."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int], object]]:
    """Show a counter on standard error, on a terminal only. Yields a function that adds to it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} " + unit), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.advance(task, count)


def recipe_files() -> dict[str, Path]:
    """Recipes of the package: "digits", "xcit/imagenet", ... -> file."""
    folder = PACKAGE / "recipes"
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.toml"))
    }


def complete_kinds(incomplete: str) -> list[str]:
    """Shell completion of kinds."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def is_exported(name: str) -> bool:
    """Whether an argument is an exported file; the package is imported only for unknown extensions."""
    path = Path(name)
    if path.suffix in WEIGHTS or not path.is_file():
        return False
    from tetravit import exports

    return exports.is_exported(path)


def menu(kind: str) -> dict[str, Outline]:
    """The rows of a menu, parsed from their source files."""
    package, tables, _ = MENUS[kind]
    return {name: row for table in tables.split() for name, row in outlines(package, table).items()}


def model_table() -> dict[str, dict[str, Any]]:
    """The facts of every model: counts and constructor arguments."""
    tables = [
        json.loads((PACKAGE / "benchmark" / f"{name}.json").read_text()) for name in ("counts", "models")
    ]
    return {name: row | tables[1][name] for name, row in tables[0].items()}


def check_recipe(name: str) -> None:
    """Raises: ValueError for an unknown recipe name; a path ending in .toml is not checked."""
    if not name.endswith(".toml"):
        pick(recipe_files(), name, "recipe")


def complete_models(incomplete: str) -> list[str]:
    """Shell completion of model names."""
    return [name for name in model_table() if name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    """Shell completion of recipe names."""
    return [name for name in recipe_files() if name.startswith(incomplete)]


def optimized(model: Model) -> Model:
    """The model on its fastest backend, which is printed on standard error."""
    from tetravit.runtimes import optimize

    fast: Any = optimize(model)  # type: ignore[type-var]
    say(f"Runs with {fast.optimized}")
    return fast


def way_of(fast: Any) -> str:
    """Backend, threads and parallel parts of an optimised model."""
    return str(fast.optimized.way)


def with_options(verb: Callable[..., None], declared: Mapping[str, tuple[Any, str]]) -> Callable[..., None]:
    """`verb` with more options in its signature, replacing its `**values`.

    declared: by name, an option as in `tetravit.predictors.base.Option`, and its help.
    """

    @functools.wraps(verb)
    def run(**values: Any) -> None:
        verb(**values)

    fixed = inspect.signature(verb)
    parameters = [p for p in fixed.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = {p.name: p.annotation for p in parameters}
    for name, (option, text) in declared.items():
        kind: Any = str | None if option.metavar else bool
        extra: dict[str, Any] = {"metavar": option.metavar} if option.metavar else {}
        hints[name] = Annotated[kind, typer.Option(option.flag, help=text, **extra)]
        default = None if option.metavar else False
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
        )
    run.__signature__ = fixed.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run
