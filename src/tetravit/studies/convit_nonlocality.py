"""Over what distance each layer of ConViT and DeiT attends, at the start and after training (Figures 5, 13)."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("deit_small", "convit_small")
# At 14 x 14, equal content attention, alpha = 1 (computed from equation 8): heads -> patches.
START = {"convit_tiny": 2.6789, "convit_small": 2.8809, "convit_base": 3.0997}
EQUAL = 7.28076  # of attention that is equal everywhere
SPREAD = 0.05  # of the first layer: content is not quite equal at the start


def measure(
    *,
    weights: Annotated[
        str, typer.Option(metavar="W,W,...", help="Models without training, published names, files.")
    ] = ",".join(MODELS),
    form: Annotated[
        str, typer.Option(help="corrected: equation 8; legacy: as the authors' code logs it.")
    ] = "corrected",
    data_root: Annotated[str, typer.Option(metavar="DIR", help="Images; random ones by default.")] = "",
    images: Annotated[int, typer.Option(metavar="N", min=1, help="How many images.")] = 8,
    small: Annotated[bool, typer.Option("--small", help="convit_tiny and deit_tiny, one image.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per model and layer: patches, mean over heads and images. Source: ConViT, equation 8, Figures 5 and 13.

    Raises:
        ValueError: for another form, or weights of another family.
    """
    import torch

    from tetravit.explainers.parts.attention import legacy_non_locality, non_locality
    from tetravit.models import create_model, list_models, load
    from tetravit.world import pick_device

    if form not in ("corrected", "legacy"):
        raise ValueError(f"--form is corrected or legacy; got {form!r}.")
    where = pick_device(device)
    for source in ["convit_tiny", "deit_tiny"] if small else [name.strip() for name in weights.split(",")]:
        torch.manual_seed(0)
        untrained = source in list_models()
        model: Any = (create_model(source) if untrained else load(source)).eval().to(where)
        if not model.name.startswith(("convit", "deit")):
            raise ValueError(f"Non-locality is for ConViT and DeiT, whose grid stays the same; got {source}.")
        on_run(f"{source}, {form}")
        totals: Any = 0
        pictures = _pictures(model, data_root, 1 if small else images)
        with torch.inference_mode():
            for picture in pictures:
                batch = picture[None].to(where)
                if form == "legacy":
                    layers = legacy_non_locality(model.backbone, batch).mean(dim=1)
                else:
                    records = model.backbone.token_attention(batch)
                    layers = torch.stack([non_locality(record).mean() for record in records])
                totals = totals + layers.double().cpu()
        expected = (START.get(source) if source.startswith("convit") else EQUAL) if untrained else None
        for layer, value in enumerate((totals / len(pictures)).tolist(), 1):
            known = expected if layer == 1 else None
            yield {
                "weights": source, "layer": layer, "form": form, "images": len(pictures),
                **compared(value, known, SPREAD, digits=3),
            }  # fmt: skip


def _pictures(model: Any, root: str, count: int) -> list[Any]:
    import torch

    if not root:
        side = model.input.sides
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(3, *side, generator=generator) for _ in range(count)]
    from pathlib import Path

    from tetravit.predictors.parts.sources import find_images

    paths = find_images([Path(root)])
    step = max(1, len(paths) // count)
    return [model.preprocess(path) for path in paths[::step][:count]]


def draw(rows: Sequence[Row]) -> "Figure":
    """Non-locality over the layers, one curve per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["weights"] for row in rows):
        own = [row for row in rows if row["weights"] == name]
        axes.plot([row["layer"] for row in own], [row["got"] for row in own], marker="o", label=name)
    axes.axhline(EQUAL, color="gray", linestyle=":", label="equal attention, 14 x 14")
    axes.set(xlabel="layer", ylabel="non-locality, patches")
    axes.legend()
    return figure


STUDIES = {
    "convit-nonlocality": Study(
        "Over what distance does each layer of ConViT and DeiT attend?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "layer": lambda row: row["layer"],
            "form": lambda row: row["form"],
            **verdicts("patches"),
        },
        source="ConViT (arXiv:2103.10697v2), equation 8, Figures 5 and 13",
        expected="the first layer at the start of training, computed from equation 8: 7.281 for DeiT, 2.881 for"
        " ConViT-S; the curves of the figures have no printed values",
        needs="nothing at the start; trained weights and images for the end (the paper: 1,024 images)",
        small="a few seconds: convit_tiny and deit_tiny without training, one image",
        draw=draw,
    )
}
