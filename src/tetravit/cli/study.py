"""`tetravit study`: experiments of the papers, one command per row of the menu `STUDIES`."""

import inspect
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.cli.base import Group, print_rows, print_table, say
from tetravit.files import replace_file

if TYPE_CHECKING:
    from tetravit.studies import Study


def command(name: str, study: "Study") -> Callable[..., None]:
    """The function of `tetravit study NAME`: the study's own options, and those shared by all studies."""

    def run(
        *,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
        into: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                help="Write the rows as JSON lines; finished rows and those of other studies are kept.",
            ),
        ] = None,
        draw: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Draw the figure: FILE.png and FILE.svg.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
        **options: Any,
    ) -> None:
        if draw is not None and study.draw is None:
            from tetravit.studies import STUDIES

            drawn = ", ".join(key for key, row in STUDIES.items() if row.draw is not None)
            raise ValueError(f"{name} has no figure; studies with one: {drawn}.")
        for option, file in (("--into", into), ("--draw", draw)):
            if file is not None and not file.absolute().parent.is_dir():
                raise ValueError(f"{option} {file}: there is no folder {file.absolute().parent}.")
        for line in plan(study, options, device):
            say(line)
        resumes = "done" in inspect.signature(study.measure).parameters
        kept = _kept(name, into) if resumes else {}
        more = {"done": kept} if resumes else {}
        rows, facts = [], {"study": name, **_facts(device)}
        for row in study.measure(**options, **more, device=device, on_run=say):
            old = row.get("key") in kept
            rows.append(row if old else {**row, **facts})
            if into is not None and resumes and not old:
                _append(into, rows[-1])
        if into is not None and not resumes:
            _replace(into, name, rows)
        if draw is not None and study.draw is not None and rows:
            figure = study.draw(rows)
            for ending in (".png", ".svg"):
                figure.savefig(draw.with_suffix(ending), dpi=150)
                say(f"Figure: {draw.with_suffix(ending)}")
        if as_json:
            print_rows(rows)
        if as_json or not rows:
            return
        first, *others = study.columns
        print_table(
            [first, *others],
            [[value(row) for value in study.columns.values()] for row in rows],
            right=others,
        )

    shared = [p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]
    own = [
        p
        for p in inspect.signature(study.measure).parameters.values()
        if p.name not in ("device", "on_run", "done")
    ]
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__doc__ = study.question
    return run


def plan(study: "Study", options: Mapping[str, Any], device: str) -> list[str]:
    """What a study measures, the source of the expected figures, its cost, requirements and missing inputs."""
    lines = [study.question]
    if study.source:
        lines.append(f"Source: {study.source}.")
    if options.get("small"):
        from tetravit.studies.base import SMALL

        return [*lines, SMALL, *([f"Takes {study.small}."] if study.small else [])]
    if study.expected:
        lines.append(f"Expected: {study.expected}.")
    lines.append(f"Needs: {study.needs}.")
    flops = study.flops(**options) if study.flops is not None else 0.0
    if flops:
        lines.append(_cost(flops, device))
    if study.weights:
        from tetravit.weights import store

        missing = [name for name in study.weights if store.cached(name) is None]
        if missing:
            lines.append(
                f"Not on this machine yet: {', '.join(missing)}; `tetravit weights fetch` brings them."
            )
    return lines


def _cost(flops: float, device: str) -> str:
    """Operations converted to time on this machine and on an H100."""
    from tetravit.benchmark.speed import product_flops
    from tetravit.studies.base import H100_FLOPS, UTILIZATION
    from tetravit.world import pick_device

    here = flops / (UTILIZATION * product_flops(pick_device(device)))
    card = flops / (UTILIZATION * H100_FLOPS)
    return (
        f"Cost: {flops:.1e} operations; at {UTILIZATION:.0%} of the peak {spoken(here)} of this machine,"
        f" {spoken(card)} of one H100 in bfloat16. That is optimistic: two to three times as long is usual."
    )


def spoken(seconds: float) -> str:
    """A duration in its largest unit: "3 days"."""
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(1, seconds):.0f} seconds" if seconds >= 2 else "a second"


def _lines(file: Path | None) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, without an incomplete last row."""
    if file is None or not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _kept(name: str, file: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a study in a file, by key."""
    return {row["key"]: row for row in _lines(file) if row.get("study") == name and "key" in row}


def _append(file: Path, row: Mapping[str, Any]) -> None:
    with file.open("a+b") as stream:
        if stream.tell() and file.read_bytes()[-1:] != b"\n":
            stream.write(b"\n")  # ends an incomplete last line
        stream.write(json.dumps(row).encode() + b"\n")


def _replace(file: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the rows of a study in the file; rows of other studies are kept."""
    others = [row for row in _lines(file) if row.get("study") != name]
    replace_file(file, "".join(json.dumps(row) + "\n" for row in (*others, *rows)).encode())


def _facts(device: str) -> dict[str, Any]:
    """Machine, versions and command of a row."""
    import torch

    from tetravit.benchmark.speed import device_name
    from tetravit.world import pick_device

    return {
        "device": device_name(pick_device(device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "command": shlex.join(["tetravit", *sys.argv[1:]]),
    }


def commands() -> dict[str, Callable[..., None]]:
    """One verb per study."""
    from tetravit.studies import STUDIES

    return {name: command(name, study) for name, study in STUDIES.items()}


GROUPS = {"study": Group("Repeat a table or figure of the papers.", commands)}
