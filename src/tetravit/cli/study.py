"""`tetravit study`: small experiments that ask the papers' questions on images that come with the package."""

import json
import shlex
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import Group, print_rows, print_table, say


def sample_efficiency(
    fractions: Annotated[str, typer.Option(metavar="F,F,...", help="Parts of every class.")] = "0.1,1.0",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each.")] = 3,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs of a run on all images.")] = 40,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    into: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rows there too, as JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """ConViT against DeiT on a part of the digits: does a convolutional start help when images are few?"""
    try:
        parts = [float(part) for part in fractions.split(",")]
    except ValueError:
        raise ValueError(f"--fractions takes numbers with commas between them; got {fractions!r}.") from None
    wrong = [part for part in parts if not 0 < part <= 1]
    if wrong:
        raise ValueError(f"A fraction is above 0 and at most 1; got {wrong[0]:g}.")

    from tetravit.studies.sample_efficiency import run

    facts = {"study": "sample-efficiency", "epochs": epochs, **_facts(device)}
    found = run(fractions=parts, seeds=range(seeds), epochs=epochs, device=device, on_run=say)
    rows = [
        {**asdict(row), "mean": row.mean, "spread": row.spread if seeds > 1 else None, **facts}
        for row in found
    ]
    if into is not None:
        into.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if as_json:
        print_rows(rows)
        return
    print_table(
        ["model", "parameters", "images", "steps", "top-1 %", "spread", "runs"],
        [
            [
                row.model,
                f"{row.params:,}",
                row.images,
                row.steps,
                f"{row.mean:.1f}",
                f"{row.spread:.1f}" if seeds > 1 else None,
                seeds,
            ]
            for row in found
        ],
        right=["parameters", "images", "steps", "top-1 %", "spread", "runs"],
    )


def _facts(device: str) -> dict[str, Any]:
    """What else one must know to repeat a row."""
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
    "study": Group("Repeat an experiment of the papers in small.", {"sample-efficiency": sample_efficiency})
}
