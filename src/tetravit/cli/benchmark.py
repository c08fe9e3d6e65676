"""`tetravit benchmark`: measure models on this machine, alone or against other implementations."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import complete_models, print_rows, print_table, progress, say


def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="Names from `tetravit list models`.", autocompletion=complete_models)
    ],
    size: Annotated[str, typer.Option(metavar="PX[,PX...]", help="Image side, or several.")] = "224",
    batch: Annotated[str, typer.Option(metavar="N[,N...]", help="Images per call, or several.")] = "8",
    train: Annotated[bool, typer.Option("--train", help="Forward and backward.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    optimized: Annotated[
        bool, typer.Option("--optimize", help="Also the model through `tetravit.optimize`.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="timm's model of the same name, in the same run: timm (eager), compile, onnxruntime, openvino. "
            "Of ours also: torch (--optimize without extras), plain-compiled.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Interleaved rounds; the median counts.")
    ] = 10,
    busy: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Keep N cores busy with other processes meanwhile; the rows say so."
        ),
    ] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the rows: PNG, SVG or PDF by its ending.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the rows to this file, as JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Measure speed, memory and the share of this machine's peak."""
    sizes, batches = _sizes(size), _batches(batch)
    for file, content in ((picture, "the picture"), (into, "the rows")):
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"There is no folder {str(file.parent)!r} for {content}.")
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder, not a file for {content}.")
    from tetravit.models import resolve
    from tetravit.world import pick_device

    names = list(dict.fromkeys(resolve(name) for name in models))
    where = pick_device(device)
    if against or optimized or picture or busy or len(sizes) > 1 or len(batches) > 1:
        if compiled:
            raise ValueError(
                "--compile goes without --against, --optimize, --busy, --picture, several sizes and several batches."
            )
        others = [name.strip() for name in against.split(",")] if against else []
        contenders = list(dict.fromkeys(["plain", *(["optimized"] if optimized else []), *others]))
        settings: dict[str, Any] = {"sizes": sizes, "batch": batches, "mode": "train" if train else "predict"}
        settings |= {"dtype": dtype, "device": str(where), "rounds": rounds, "busy": busy}
        _contest(names, contenders, settings, picture, into, as_json)
        return
    from tetravit.benchmark.speed import measure
    from tetravit.benchmark.table import caption, cells, columns

    with progress(f"of {rounds} rounds") as advance:
        rows = measure(
            names,
            size=sizes[0],
            batch=batches[0],
            mode="train" if train else "predict",
            dtype=dtype,
            device=where,
            compiled=compiled,
            rounds=rounds,
            on_round=advance,
        )
    _append(into, rows)
    if as_json:
        print_rows(asdict(row) for row in rows)
        return
    titles = columns(rows)
    print_table(titles, [cells(row, rows) for row in rows], right=titles[1:])
    say(caption(rows))


def _contest(
    names: list[str],
    contenders: list[str],
    settings: dict[str, Any],
    picture: Path | None,
    into: Path | None,
    as_json: bool,
) -> None:
    from tetravit.benchmark.against import contest
    from tetravit.benchmark.table import TEXTS, contest_caption, contest_cells, contest_columns

    count = settings["rounds"] * len(names) * len(settings["sizes"]) * len(settings["batch"])
    with progress(f"of {count} rounds") as advance:
        rows = contest(
            names, contenders, **settings, on_round=advance, on_rows=lambda rows: _append(into, rows)
        )
    if as_json:
        print_rows(asdict(row) for row in rows)
    else:
        titles = contest_columns(rows)
        print_table(titles, [contest_cells(row, rows) for row in rows], right=titles[TEXTS:])
        for row in rows:
            if row.failed:
                say(f"{row.contender} on {row.model} at {row.size} px, batch {row.batch}: {row.failed}")
        say(contest_caption(rows))
    if picture is not None:
        from tetravit.benchmark.picture import draw

        draw(rows, picture)
        say(f"Drew {picture}.")


def _append(into: Path | None, rows: Sequence[Any]) -> None:
    """Append measured rows to a file, if one is given."""
    if into is not None:
        with into.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 32 for part in parts):
        raise ValueError(f"--size takes pixels from 32 up, or several with commas between; got {text!r}.")
    return list(dict.fromkeys(int(part) for part in parts))


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise ValueError(f"--batch takes a number from 1 up, or several with commas between; got {text!r}.")
    return list(dict.fromkeys(int(part) for part in parts))


VERBS = {"benchmark": benchmark}
