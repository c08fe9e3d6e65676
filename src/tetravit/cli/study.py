"""`tetravit study`: experiments of the papers, one command per row of the menu `STUDIES`."""

import inspect
import json
import shlex
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import Group, print_rows, print_table, say
from tetravit.studies import STUDIES, Study


def command(name: str, study: Study) -> Callable[..., None]:
    """The function of `tetravit study NAME`: the study's own options, and those that all studies share."""

    def run(
        *,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
        into: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE", help="Append the rows there as JSON lines; rows that are there stay."
            ),
        ] = None,
        draw: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Draw the figure: FILE.png and FILE.svg.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
        **options: Any,
    ) -> None:
        if draw is not None and study.draw is None:
            drawn = ", ".join(key for key, row in STUDIES.items() if row.draw is not None)
            raise ValueError(f"{name} has no figure; studies with one: {drawn}.")
        for line in plan(study):
            say(line)
        kept = _kept(name, into)
        resumes = "done" in inspect.signature(study.measure).parameters
        more = {"done": kept} if resumes else {}
        rows = list(kept.values()) if resumes else []
        facts = {"study": name, **_facts(device)}
        if into is not None and not resumes:
            into.write_text("")
        for row in study.measure(**options, **more, device=device, on_run=say):
            rows.append({**row, **facts})
            if into is not None:
                with into.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        if draw is not None and study.draw is not None:
            figure = study.draw(rows)
            for ending in (".png", ".svg"):
                figure.savefig(draw.with_suffix(ending), dpi=150)
                say(f"Figure: {draw.with_suffix(ending)}")
        if as_json:
            print_rows(rows)
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


def plan(study: Study) -> list[str]:
    """What a study measures, where the expected figures are from, what it needs and what of that is missing."""
    lines = [study.question]
    if study.source:
        lines.append(f"Source: {study.source}.")
    lines.append(f"Needs: {study.needs}.")
    if study.weights:
        from tetravit.weights import store

        missing = [name for name in study.weights if store.cached(name) is None]
        if missing:
            lines.append(
                f"Not on this machine yet: {', '.join(missing)}; `tetravit weights fetch` brings them."
            )
    return lines


def _kept(name: str, into: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of this study in a file, by key."""
    if into is None or not into.is_file():
        return {}
    rows = [json.loads(line) for line in into.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["key"]: row for row in rows if row.get("study") == name and "key" in row}


def _facts(device: str) -> dict[str, Any]:
    """The machine, the versions and the command of a row."""
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


GROUPS = {
    "study": Group(
        "Repeat a table or figure of the papers.",
        {name: command(name, study) for name, study in STUDIES.items()},
    )
}
