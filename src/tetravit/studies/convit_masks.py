"""ConViT with a part of its attention masked at test time: content or position (Table 6), embeddings (Table 5)."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared, verdicts
from tetravit.studies.parts.figures import bars
from tetravit.studies.parts.scores import beside, data_overrides, score, spread
from tetravit.studies.parts.small import train_small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tetravit.models.base import Model

ONE = 100.0  # a gating parameter whose sigmoid is 1 in float32
LAYERS = (0, 3, 5, 10)  # first so many layers
# Table 6: (masked, layers) -> top-1 of ConViT-Ti in percent.
TABLE_6 = {
    ("nothing", 0): 73.1,
    ("content", 3): 62.3, ("content", 5): 35.0, ("content", 10): 1.3,
    ("position", 3): 63.5, ("position", 5): 53.1, ("position", 10): 46.8,
}  # fmt: skip
# Table 5: (weights, embeddings masked) -> top-1 in percent.
TABLE_5 = {
    ("deit_tiny.in1k", False): 72.2, ("deit_tiny.in1k", True): 38.3,
    ("convit_tiny.in1k", False): 73.1, ("convit_tiny.in1k", True): 67.1,
}  # fmt: skip
ROUNDING = 0.1

DataRoot = Annotated[str, typer.Option(metavar="DIR", help="ImageNet, or a set of the weights' classes.")]
Images = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Number of validation images; default: all.")
]
Small = Annotated[bool, typer.Option("--small", help="Small models, trained on the digits first.")]
Epochs = Annotated[int, typer.Option(metavar="N", min=1, help="With --small: epochs of training.")]


def mask_attention(model: "Model", masked: str, layers: int) -> "Model":
    """Mask content (gate 1) or position (gate 0) in the first layers of a ConViT, in place."""
    import torch

    for block in list(model.backbone.blocks)[:layers]:  # type: ignore[arg-type]
        if masked != "nothing" and hasattr(block.attn, "gating_param"):
            with torch.no_grad():
                block.attn.gating_param.fill_(ONE if masked == "content" else -ONE)
    return model


def mask_positions(model: "Model") -> "Model":
    """Set learned position embeddings to zero, in place."""
    import torch

    with torch.no_grad():
        model.backbone.pos_embed.table.zero_()  # type: ignore[union-attr, operator]
    return model


def measure_attention(
    *,
    weights: Annotated[str, typer.Option(metavar="W", help="A ConViT.")] = "convit_tiny.in1k",
    data_root: DataRoot = "",
    images: Images = None,
    small: Small = False,
    epochs: Epochs = 6,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """One row per mask. Source: ConViT, Table 6."""
    with tempfile.TemporaryDirectory() as folder:
        source: str | Path = weights
        overrides = [] if small else data_overrides(data_root)
        layers = (0, 1, 3) if small else LAYERS
        whole: Row | None = None
        for masked, count in [("nothing", 0), *((m, n) for n in layers[1:] for m in ("content", "position"))]:
            key = " ".join(map(str, (weights, data_root, images, small and epochs, masked, count)))
            if key in done:
                whole = whole or done[key]
                yield dict(done[key])
                continue
            if small:
                source = train_small("convit_tiny", Path(folder), epochs=epochs, device=device, on_run=on_run)
            plural = "s" * (count > 1)
            on_run(f"{masked} masked in the first {count} layer{plural}" if count else "nothing masked")
            row = score(
                source, overrides, images=images, device=device,
                prepare=lambda model, masked=masked, count=count: mask_attention(model, masked, count),  # type: ignore[misc]
            )  # fmt: skip
            published = TABLE_6.get((masked, count)) if weights == "convit_tiny.in1k" and not small else None
            line = {
                "key": key, "weights": "small convit" if small else weights, "masked": masked, "layers": count,
                **row, **compared(row["top1"], published, spread(row, ROUNDING), digits=1),
            }  # fmt: skip
            whole = whole or line
            yield beside(line, whole, "the whole model") if small else line


def measure_positions(
    *,
    data_root: DataRoot = "",
    images: Images = None,
    small: Small = False,
    epochs: Epochs = 20,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """Two rows per model, with and without position embeddings. Source: ConViT, Table 5."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [] if small else data_overrides(data_root)
        trained: dict[str, Row] = {}
        for name, masked in TABLE_5:
            key = " ".join(map(str, (name, data_root, images, small and epochs, masked)))
            if key in done:
                trained.setdefault(name, done[key])
                yield dict(done[key])
                continue
            model = name.partition(".")[0]
            source: str | Path = name
            if small:
                source = train_small(model, Path(folder), epochs=epochs, device=device, on_run=on_run)
            on_run(f"{model}, position embeddings {'masked' if masked else 'as trained'}")
            row = score(
                source, overrides, images=images, device=device, prepare=mask_positions if masked else None
            )  # fmt: skip
            published = None if small else TABLE_5[name, masked]
            line = {
                "key": key, "weights": f"small {model}" if small else name, "masked": masked,
                **row, **compared(row["top1"], published, spread(row, ROUNDING), digits=1),
            }  # fmt: skip
            trained.setdefault(name, line)
            yield beside(line, trained[name], "the model as trained") if small else line


def flops_attention(*, weights: str, images: int | None, **_: Any) -> float:
    """Operations of seven evaluations."""
    from tetravit.benchmark.flops import table

    counted = table().get(weights.partition(".")[0], table()["convit_tiny"])
    return 2.0 * len(TABLE_6) * (images or 50_000) * counted.inference_macs


def flops_positions(*, images: int | None, **_: Any) -> float:
    """Operations of four evaluations."""
    from tetravit.benchmark.flops import table

    return (
        2.0 * (images or 50_000) * sum(table()[name.partition(".")[0]].inference_macs for name, _ in TABLE_5)
    )


def draw_attention(rows: Sequence[Row]) -> "Figure":
    """Top-1 over the number of masked layers, one curve per mask; published figures dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, masked in enumerate(("content", "position")):
        own = sorted((r for r in rows if r["masked"] in ("nothing", masked)), key=lambda r: r["layers"])
        axes.plot(
            [r["layers"] for r in own],
            [r["got"] for r in own],
            marker="o",
            color=f"C{number}",
            label=f"{masked} masked",
        )
        known = [(r["layers"], r["expected"]) for r in own if r["expected"] is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), "--", marker=".", color=f"C{number}", label=f"{masked}, published"
            )
    axes.set(xlabel="first layers that are masked", ylabel="top-1, %")
    axes.set_xticks(sorted({row["layers"] for row in rows}))
    axes.legend()
    return figure


def draw_positions(rows: Sequence[Row]) -> "Figure":
    """Top-1 with and without position embeddings as bars, published figures as lines."""
    return bars(
        rows, lambda row: f"{row['weights']}, {'masked' if row['masked'] else 'as trained'}", "top-1, %"
    )


EXPECTED = "as printed; within 0.1 points and two standard errors of a part of the images"
NEEDS = "published weights and a validation set (--data-root)"
SMALL = "about a minute of one processor: small models, trained on the digits first"
STUDIES = {
    "convit-mask-attention": Study(
        "How much does ConViT's accuracy depend on content, and how much on position?",
        measure_attention,
        {
            "weights": lambda row: row["weights"],
            "masked": lambda row: row["masked"],
            "layers": lambda row: row["layers"],
            "images": lambda row: row["images"],
            **verdicts("top-1 %"),
        },
        source="ConViT (arXiv:2103.10697v2), Table 6",
        expected=EXPECTED,
        small=SMALL,
        flops=flops_attention,
        draw=draw_attention,
        needs=NEEDS,
        weights=("convit_tiny.in1k",),
    ),
    "convit-mask-positions": Study(
        "What do DeiT and ConViT lose without their position embeddings?",
        measure_positions,
        {
            "weights": lambda row: row["weights"],
            "embeddings": lambda row: "masked" if row["masked"] else "as trained",
            "images": lambda row: row["images"],
            **verdicts("top-1 %"),
        },
        source="ConViT (arXiv:2103.10697v2), Table 5",
        expected=EXPECTED,
        small=SMALL,
        flops=flops_positions,
        draw=draw_positions,
        needs=NEEDS,
        weights=("deit_tiny.in1k", "convit_tiny.in1k"),
    ),
}
