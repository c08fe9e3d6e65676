"""`tetravit data`: draw, check, pack and time data sets."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import Group, check_recipe, print_rows, print_table, progress, progress_bar, say
from tetravit.registry import pick

SETS = ("shapes",)


def make(
    name: Annotated[str, typer.Argument(help="What to make: shapes.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Output folder; created if missing.")],
    train: Annotated[int, typer.Option(metavar="N", min=1, help="Training images.")] = 1000,
    val: Annotated[int, typer.Option(metavar="N", min=1, help="Validation images.")] = 100,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of an image.")] = 128,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Other images.")] = 0,
) -> None:
    """Draw a set of images and write it in the layouts of ImageFolder, COCO and ADE20K."""
    pick(dict.fromkeys(SETS), name, "drawn data set")
    from tetravit.data.layouts import write_shapes

    with progress("drawings") as advance:
        for _ in write_shapes(to, train=train, val=val, size=size, seed=seed):
            advance(1)
    say(f"Drew {train} + {val} images of {size} x {size} pixels into {to}: folders, coco, ade20k.")


def check(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder of a data set; it is only read.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the report, outside ROOT; unset: ./check-NAME."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="`tetravit list datasets`; unset: detected from ROOT.")
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes; 0: one per core.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for notes too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one line of JSON.")] = False,
) -> None:
    """Check every file of a data set: damaged and unusual images, duplicates, leaks, wrong labels.

    Writes check.json and check.html with thumbnails. The same command continues an interrupted check. Exit code 0, or
    1 for findings that lose data or distort a score.
    """
    from tetravit.data.audit import check_data
    from tetravit.data.datasets import DATASETS

    if name is not None:
        pick(DATASETS, name, "data set")
    out = to or Path(f"check-{root.absolute().name}")
    with progress_bar("files") as bar:
        audit = check_data(root, out, name=name, workers=workers, progress=bar)
    if as_json:
        print_rows([audit.row()])
    else:
        for finding in audit.findings:
            print(f"{finding.level}: {finding.line()}.")
    say(
        f"Read {audit.files:,} files as {audit.layout.name}: {audit.errors} errors. The report: {out / 'check.html'}"
    )
    if audit.errors or (strict and audit.findings):
        raise typer.Exit(1)


def pack(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder of a data set; it is only read.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the shards, outside ROOT.")],
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Approximate size of a shard: 256MB, 1GiB.")
    ] = "256MB",
    name: Annotated[
        str | None, typer.Option(help="`tetravit list datasets`; unset: detected from ROOT.")
    ] = None,
    order: Annotated[
        str,
        typer.Option(help="mixed: shuffle training images over the shards; sorted: in the order of paths."),
    ] = "mixed",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Option of the data set, as data.options."),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Write a data set as tar shards with an index: with classes, objects, label maps, or unlabelled.

    The same command writes the same bytes, and continues an interrupted call.
    """
    from tetravit.data.datasets import DATASETS
    from tetravit.data.shards.pack import pack as write
    from tetravit.data.shards.pack import parse_size

    if name is not None:
        pick(DATASETS, name, "data set")
    pick(dict.fromkeys(("mixed", "sorted")), order, "order")
    given = dict(_option(text) for text in options or ())
    with progress_bar("shards") as bar:
        meta = write(
            root,
            to,
            name=name,
            options=given,
            shard_size=parse_size(shard_size),
            order=order,  # type: ignore[arg-type]
            workers=workers,
            progress=bar,
        )
    say(f"Packed {_counts(meta)} into {to}.")


def index(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of .tar files in WebDataset's layout.")
    ],
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Write the index of existing tar shards: each is read once; an interrupted call continues."""
    from tetravit.data.shards.scan import index_shards

    with progress_bar("shards") as bar:
        meta = index_shards(str(folder), workers=workers, progress=bar)
    say(f"Indexed {_counts(meta)} in {folder}.")


def bench(
    recipe: Annotated[str, typer.Argument(help="A name from `tetravit list recipes`, or a TOML file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the recipe: data.root=DIR"),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Numbers of workers; unset: 0, 1, 2, 4, ... up to the cores."),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per number of workers.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Time the loading of a recipe's training images: by number of workers, and by stage."""
    check_recipe(recipe)
    import torch

    from tetravit.data.build import as_trained
    from tetravit.data.datasets import DATASETS
    from tetravit.data.speed import speeds, stages, worker_counts
    from tetravit.recipe import find, load

    try:
        counts = [int(text) for text in workers.split(",")] if workers else worker_counts()
    except ValueError:
        counts = [-1]
    if min(counts) < 0:
        raise ValueError(f"--workers takes numbers from 0 up with commas between them; got {workers!r}.")
    chosen = load(find(recipe), changes or [])
    if chosen.data.root is None and chosen.data.train is None and DATASETS[chosen.data.name].needs_root:
        raise ValueError(f"The recipe lacks data.root: tetravit data bench {recipe} data.root=DIR.")
    config = as_trained(chosen.data, chosen.model.head)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = stages(config)
        measured = list(speeds(config, counts, seconds))
    finally:
        torch.set_num_threads(threads)
    total = sum(part.ms for part in parts)
    if as_json:
        print_rows([vars(part) for part in parts])
        print_rows([vars(speed) for speed in measured])
    else:
        print_table(
            ["stage", "ms an image", "share"],
            [[part.name, f"{part.ms:.2f}", f"{100 * part.ms / total:.0f} %"] for part in parts],
            right=["ms an image", "share"],
        )
        print_table(
            ["workers", "images/s"],
            [[speed.workers, f"{speed.images_per_s:,.0f}"] for speed in measured],
            right=["workers", "images/s"],
        )
    slow = max(parts, key=lambda part: part.ms)
    best = max(measured, key=lambda speed: speed.images_per_s)
    say(
        f"The slowest stage is {slow.name}: {slow.ms:.2f} of {total:.2f} ms an image. Fastest with {best.workers}"
        f" workers: {best.images_per_s:,.0f} images/s."
    )


def _counts(meta: Any) -> str:
    """ "1,000 train and 50 val images to classify in 5 shards"."""
    parts = " and ".join(f"{meta.count(part):,} {part}" for part in meta.parts)
    shards = sum(len(shards) for shards in meta.parts.values())
    kind = "without labels" if meta.kind == "unlabelled" else f"to {meta.kind}"
    return f"{parts} images {kind} in {shards:,} shard{'' if shards == 1 else 's'}"


def _option(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE, the value as TOML if valid, else as text.

    Raises:
        ValueError: if there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"An option is KEY=VALUE; got {text!r}.")
    try:
        return key, tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key, value


GROUPS = {
    "data": Group(
        "Draw, check, pack and time data sets.",
        {"make": make, "check": check, "pack": pack, "index": index, "bench": bench},
    )
}
