"""`tetravit benchmark`: measure models on this machine."""

from dataclasses import asdict
from typing import Annotated

import typer

from tetravit.cli.base import complete_models, print_rows, print_table, progress, say
from tetravit.registry import pick

MODES = ("predict", "train")


def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="Names from `tetravit list models`.", autocompletion=complete_models)
    ],
    size: Annotated[int, typer.Option(metavar="PX", min=32, help="Image side.")] = 224,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call.")] = 8,
    mode: Annotated[str, typer.Option(help="predict (forward) or train (forward and backward).")] = "predict",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Interleaved rounds; the median counts.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per model.")] = False,
) -> None:
    """Measure speed, memory and the share of this machine's limit."""
    pick(dict.fromkeys(MODES), mode, "mode")
    from tetravit.benchmark.speed import measure
    from tetravit.benchmark.table import COLUMNS, caption, cells
    from tetravit.engine.distributed import pick_device
    from tetravit.models import resolve

    names = list(dict.fromkeys(resolve(name) for name in models))
    where = pick_device(device)
    with progress(f"of {rounds} rounds") as advance:
        rows = measure(
            names,
            size=size,
            batch=batch,
            mode=mode,  # type: ignore[arg-type]
            dtype=dtype,
            device=where,
            compiled=compiled,
            rounds=rounds,
            on_round=advance,
        )
    if as_json:
        print_rows(asdict(row) for row in rows)
        return
    print_table(COLUMNS, [cells(row) for row in rows], right=COLUMNS[1:])
    say(caption(rows))
