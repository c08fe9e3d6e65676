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
            Path | None, typer.Option(metavar="FILE", help="Write the rows there too, as JSON lines.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
        **options: Any,
    ) -> None:
        rows = study.measure(**options, device=device, on_run=say)
        facts = {"study": name, **_facts(device)}
        rows = [{**row, **facts} for row in rows]
        if into is not None:
            into.write_text("".join(json.dumps(row) + "\n" for row in rows))
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
        p for p in inspect.signature(study.measure).parameters.values() if p.name not in ("device", "on_run")
    ]
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__doc__ = study.question
    return run


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
        "Repeat a table or figure of the papers, in small.",
        {name: command(name, study) for name, study in STUDIES.items()},
    )
}
