"""How much faster Twins-SVT runs in programs for deployment than in PyTorch (Section 3.2)."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

MODELS = ("twins_svt_small", "twins_pcpvt_small")


def measure(
    *,
    models: Annotated[str, typer.Option(metavar="M,M,...", help="Classifiers by name.")] = ",".join(MODELS),
    batches: Annotated[str, typer.Option(metavar="N,N,...", help="Images per call.")] = "1,8",
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Each program is measured so often.")] = 5,
    small: Annotated[
        bool, typer.Option("--small", help="One narrow model at 64 pixels, without torch.compile.")
    ] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per model, number type, batch and program: its speed, and that over PyTorch's without a compiler.

    Programs of one row are measured in turns. On a graphics card in float32 and in float16.

    Raises:
        ValueError: for batches that are no counts, or an unknown model.
    """
    import torch

    from tetravit.models import create_model
    from tetravit.runtimes import BACKENDS, optimize
    from tetravit.world import pick_device

    counts = batch_sizes(batches)
    where = pick_device(device)
    dtypes = [torch.float32, torch.float16] if where.type == "cuda" else [torch.float32]
    options: dict[str, Any] = {"dims": (16, 32, 64, 64), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4)}
    backends = [name for name, row in BACKENDS.items() if not (small and row.slow)]
    names = ["twins_svt_small"] if small else [name.strip() for name in models.split(",")]
    for name in names:
        torch.manual_seed(0)
        model = create_model(name, **(options if small else {})).eval().to(where)
        for dtype in dtypes:
            for batch in counts:
                side = 64 if small else 224
                images = torch.randn(batch, 3, side, side, device=where, dtype=dtype)
                programs: dict[str, nn.Module] = {}
                reasons: dict[str, str] = {}
                for backend in backends:
                    on_run(f"{name}, {batch} images, {str(dtype).removeprefix('torch.')}, {backend}")
                    try:
                        programs[backend] = optimize(model, dtype=dtype, backend=backend, example=images)
                    except ValueError as error:
                        reasons[backend] = str(error)
                speeds = in_turns(programs, images, 1 if small else rounds, 0.05 if small else 0.5)
                for backend in backends:
                    yield {
                        "model": f"small {name}" if small else name, "program": backend, "batch": batch,
                        "dtype": str(dtype).removeprefix("torch."), "images_per_s": speeds.get(backend),
                        "note": reasons.get(backend, ""), **_ratio(speeds, backend),
                    }  # fmt: skip


def _ratio(speeds: dict[str, float], backend: str) -> dict[str, Any]:
    if backend not in speeds:
        return {"got": None, "expected": None, "difference": None, "verdict": "not run"}
    return compared(speeds[backend] / speeds["eager"], None, 0.0)


def batch_sizes(text: str) -> list[int]:
    """The counts of `--batches`.

    Raises:
        ValueError: for what is no count from 1 up.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"--batches takes counts from 1 up with commas between them; got {text!r}.")
    return counts


def in_turns(
    programs: "dict[str, nn.Module]", images: "Tensor", rounds: int, seconds: float
) -> dict[str, float]:
    """Images a second of each program: the median over rounds in which each has its turn."""
    import torch

    def call(program: "nn.Module") -> float:
        start, calls = time.perf_counter(), 0
        with torch.inference_mode():
            while not calls or time.perf_counter() - start < seconds:
                program(images)
                if images.is_cuda:
                    torch.cuda.synchronize(images.device)
                calls += 1
        return calls * len(images) / (time.perf_counter() - start)

    for program in programs.values():
        call(program)  # warm-up
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            rates[name].append(call(program))
    return {name: round(statistics.median(found), 2) for name, found in rates.items()}


def draw(rows: Sequence[Row]) -> "Figure":
    """The speed of each program over that of PyTorch as bars, one panel per model."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4.4 * len(models), 3.2), layout="constrained")
    for axes, model in zip(
        figure.subplots(1, len(models), squeeze=False, sharey=True)[0], models, strict=True
    ):
        own = [row for row in rows if row["model"] == model and row["got"] is not None]
        settings = list(dict.fromkeys((row["batch"], row["dtype"]) for row in own))
        programs = list(dict.fromkeys(row["program"] for row in own))
        width = 0.8 / len(settings)
        for number, (batch, dtype) in enumerate(settings):
            held = {
                row["program"]: row["got"] for row in own if (row["batch"], row["dtype"]) == (batch, dtype)
            }
            places = [
                i + (number - (len(settings) - 1) / 2) * width for i, p in enumerate(programs) if p in held
            ]
            label = f"{batch} image{'s' * (batch > 1)}, {dtype}"
            bars = axes.bar(places, [held[p] for p in programs if p in held], 0.92 * width, label=label)
            axes.bar_label(bars, fmt="%.2f", fontsize="x-small")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(programs)), programs)
        axes.set(title=model, ylabel="speed over PyTorch" if model == models[0] else "")
        axes.margins(y=0.15)
        axes.legend(fontsize="small")
    return figure


STUDIES = {
    "twins-deploy": Study(
        "How much faster does Twins run in programs for deployment than in PyTorch?",
        measure,
        {
            "model": lambda row: row["model"],
            "program": lambda row: row["program"],
            "batch": lambda row: row["batch"],
            "type": lambda row: row["dtype"],
            "images/s": lambda row: row["images_per_s"],
            "over PyTorch": lambda row: row["got"],
            "note": lambda row: row["note"],
        },
        source="the question of Twins (arXiv:2104.13840), Section 3.2",
        expected="TensorRT makes SVT-S 1.7 times as fast as PyTorch, batch and precision not stated; no program here"
        " is TensorRT, so no row is compared with it",
        needs="this machine, some minutes, nothing else running; random weights",
        small="minutes, mostly of exporting and compiling",
        draw=draw,
    )
}
