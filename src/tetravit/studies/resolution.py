"""Top-1 against the size of the test images, without fine-tuning, for one model of each family."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared, verdicts
from tetravit.studies.parts.scores import beside, data_overrides, score, spread
from tetravit.studies.parts.small import MODELS, train_small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = (
    "xcit_small_12_p16.in1k",
    "convit_small.in1k",
    "gcvit_tiny.in1k",
    "twins_svt_small.in1k",
    "deit_small.in1k",
)
SIDES = (224, 288, 384, 512, 640, 768)
# Top-1 in percent at SIDES, measured by the authors of VMamba on the published weights (their Table 9).
MEASURED = {
    "xcit_small_12_p16.in1k": (81.87, 82.44, 81.84, 79.80, 76.84, 72.52),
    "deit_small.in1k": (80.69, 80.80, 78.87, 74.21, 68.04, 60.98),
}
ROUNDING = 0.1


def measure(
    *,
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="Classifiers.")] = ",".join(WEIGHTS),
    sides: Annotated[str, typer.Option(metavar="N,N,...", help="Image sides in pixels.")] = ",".join(
        map(str, SIDES)
    ),
    data_root: Annotated[
        str, typer.Option(metavar="DIR", help="ImageNet, or a set of the weights' classes.")
    ] = "",
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of validation images; default: all.")
    ] = None,
    crop: Annotated[float, typer.Option(help="Crop: share of the resized image.")] = 1.0,
    small: Annotated[
        bool, typer.Option("--small", help="Use small models, trained on the digits first.")
    ] = False,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="With --small: epochs of training.")] = 4,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """One row per model and size. Source: XCiT, Figure 3, and VMamba, Table 9.

    Raises:
        ValueError: if sizes are not numbers.
    """
    try:
        requested = [int(side) for side in sides.split(",")]
    except ValueError:
        raise ValueError(f"--sides takes numbers with commas between them; got {sides!r}.") from None
    if small:
        requested = [32, 48, 64]
    with tempfile.TemporaryDirectory() as folder:
        overrides = [] if small else [*data_overrides(data_root), f"data.crop={crop}"]
        for name in list(MODELS) if small else [name.strip() for name in weights.split(",")]:
            source: str | Path = name
            own: Row | None = None
            for side in requested:
                key = " ".join(map(str, (name, data_root, images, crop, small and epochs, side)))
                if key in done:
                    own = own or done[key]
                    yield dict(done[key])
                    continue
                if small:
                    source = train_small(name, Path(folder), epochs=epochs, device=device, on_run=on_run)
                on_run(f"{name} at {side} pixels")
                row = score(source, [*overrides, f"data.image_size={side}"], images=images, device=device)
                known = dict(zip(SIDES, MEASURED.get(name, ()), strict=False)) if not small else {}
                line = {
                    "key": key, "weights": f"small {name}" if small else name, "side": side,
                    **row, **compared(row["top1"], known.get(side), spread(row, ROUNDING)),
                }  # fmt: skip
                own = own or line
                yield beside(line, own, f"{own['side']} pixels") if small else line


def flops(*, weights: str, sides: str, images: int | None, **_: Any) -> float:
    """Relative cost of all models and sizes, proportional to pixels: a lower bound for ConViT and DeiT."""
    from tetravit.benchmark.flops import table

    counts = table()
    models = [name.strip().partition(".")[0] for name in weights.split(",")]
    scale = sum((int(side) / 224) ** 2 for side in sides.split(",") if side.strip().isdigit())
    return 2.0 * (images or 50_000) * scale * sum(counts[m].inference_macs for m in models if m in counts)


def draw(rows: Sequence[Row]) -> "Figure":
    """A chart of top-1 over image size, one curve per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["weights"] for row in rows):
        own = sorted((row["side"], row["top1"]) for row in rows if row["weights"] == name)
        axes.plot(*zip(*own, strict=True), marker="o", label=name)
    axes.set(xlabel="image side, pixels", ylabel="top-1, %")
    axes.legend(fontsize="small")
    return figure


STUDIES = {
    "resolution": Study(
        "How does accuracy change with the size of the test images, without fine-tuning?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "side": lambda row: row["side"],
            "images": lambda row: row["images"],
            **verdicts("top-1 %"),
        },
        source="the question of XCiT (arXiv:2106.09681), Figure 3",
        expected="for XCiT and DeiT as VMamba's authors measured them (Table 9; their crop is not stated), within 0.1"
        " points and two standard errors of a part of the images; nothing is published for the other families",
        needs="published weights and a validation set (--data-root)",
        small="about two minutes of one processor: five small models, trained on the digits first",
        flops=flops,
        weights=WEIGHTS,
        draw=draw,
    )
}
