"""Classifiers on the test sets around ImageNet: V2, -A, -R, Sketch and ReaL's labels."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, verdicts
from tetravit.studies.parts.scores import beside
from tetravit.studies.parts.small import MODELS, train_small
from tetravit.studies.parts.tables import evaluated, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tetravit.models.base import Model

WEIGHTS = ("xcit_small_12_p16.in1k", "convit_small.in1k", "twins_svt_small.in1k")
IMAGES = 50_000 + 10_000 + 7_500 + 30_000 + 50_889  # of ImageNet's validation part and of the sets but ReaL
CHANGES = ("as they are", "noise", "blur", "low contrast", "shifted")


def change(images: "Tensor", how: str) -> "Tensor":
    """Normalised images (B, C, Hi, Wi) after one of `CHANGES`."""
    import torch
    from torch.nn import functional as F

    if how == "noise":
        generator = torch.Generator().manual_seed(0)
        return images + 0.5 * torch.randn(images.shape, generator=generator).to(images)
    if how == "blur":
        return F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    if how == "low contrast":
        mean = images.mean(dim=(2, 3), keepdim=True)
        return mean + 0.3 * (images - mean)
    return images.roll(4, dims=3) if how == "shifted" else images


def _changed(how: str) -> "Callable[[Model], Model]":
    def prepare(model: "Model") -> "Model":
        model.register_forward_pre_hook(lambda _, inputs: (change(inputs[0], how), *inputs[1:]))
        return model

    return prepare


def measure(
    *,
    weights: Annotated[
        str,
        typer.Option(metavar="W,W,...", help="Published classifiers; `all`: each with published figures."),
    ] = ",".join(WEIGHTS),
    imagenet: Annotated[str, typer.Option(metavar="DIR", help="ImageNet.")] = "",
    v2: Annotated[str, typer.Option(metavar="DIR", help="ImageNet-V2, matched frequency.")] = "",
    a: Annotated[str, typer.Option("--a", metavar="DIR", help="ImageNet-A.")] = "",
    r: Annotated[str, typer.Option("--r", metavar="DIR", help="ImageNet-R.")] = "",
    sketch: Annotated[str, typer.Option(metavar="DIR", help="ImageNet-Sketch.")] = "",
    real: Annotated[str, typer.Option(metavar="FILE", help="ReaL's real.json; with --imagenet.")] = "",
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per set; default: all.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Small models of the five families on changed digits.")
    ] = False,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="With --small: epochs of training.")] = 4,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """One row per weights and test set. Source: timm's results on the same weights.

    Raises:
        ValueError: for no test set, labels of ReaL without the images, or weights that are no published classifiers.
    """
    if small:
        yield from _small(images, epochs, device, on_run, done)
        return
    from tetravit.weights import CHECKPOINTS

    if real and not imagenet:
        raise ValueError("ReaL has labels alone: --real FILE goes with --imagenet DIR.")
    sets = {
        "imagenet": imagenet, "imagenet_v2": v2, "imagenet_a": a, "imagenet_r": r, "imagenet_sketch": sketch,
        "imagenet_real": imagenet if real else "",
    }  # fmt: skip
    sets = {name: root for name, root in sets.items() if root}
    if not sets:
        raise ValueError(
            "The study needs a test set: --v2, --a, --r, --sketch or --imagenet DIR, or --small."
        )
    known = [row.name for row in CHECKPOINTS.values() if row.task == "classify" and row.num_classes == 1000]
    with_figures = [name for name in known if "v2" in CHECKPOINTS[name].measured]
    for name in with_figures if weights == "all" else names(weights, known):
        for data, root in sets.items():
            overrides = [f"data.name={data}", f"data.root={root}"]
            overrides += [f"data.options.labels={real}"] if data == "imagenet_real" else []
            yield from evaluated(
                name, overrides, ("top1",), key=" ".join(map(str, (name, *overrides, images))),
                facts={"weights": name, "data": data}, images=images, device=device, done=done, on_run=on_run,
            )  # fmt: skip


def _small(
    images: int | None,
    epochs: int,
    device: str,
    on_run: Callable[[str], object],
    done: Mapping[str, Row],
) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            keys = {how: " ".join(map(str, ("small", name, epochs, images, how))) for how in CHANGES}
            source: str | Path = name
            if not all(f"{key} top1" in done for key in keys.values()):
                source = train_small(name, Path(folder), epochs=epochs, device=device, on_run=on_run)
            plain: dict[str, Any] | None = None
            for how, key in keys.items():
                for row in evaluated(
                    source, [], ("top1",), key=key, facts={"weights": f"small {name}", "data": how}, images=images,
                    device=device, done=done, on_run=on_run, prepare=_changed(how),
                ):  # fmt: skip
                    plain = plain or row
                    yield beside(row, plain, "the images as they are")


def flops(*, weights: str, images: int | None, **_: Any) -> float:
    """Operations of all sets for the weights that are named."""
    from tetravit.benchmark.flops import table

    models = [name.strip().partition(".")[0] for name in (weights if weights != "all" else "").split(",")]
    each = 6 * images if images else IMAGES
    counts = table()
    return 2.0 * each * sum(counts[model].inference_macs for model in models if model in counts)


def draw(rows: Sequence[Row]) -> "Figure":
    """Top-1 of each set as groups of bars, one colour per weights; published figures as lines."""
    from matplotlib.figure import Figure

    sets, models = (list(dict.fromkeys(row[key] for row in rows)) for key in ("data", "weights"))
    figure = Figure(figsize=(1.6 + 1.3 * len(sets), 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        own = {row["data"]: row for row in rows if row["weights"] == model}
        places = [i + (number - (len(models) - 1) / 2) * width for i, name in enumerate(sets) if name in own]
        axes.bar(places, [own[name]["got"] for name in sets if name in own], width * 0.92, label=model)
        for place, name in zip(places, (name for name in sets if name in own), strict=True):
            if own[name]["expected"] is not None:
                axes.plot([place - width / 2, place + width / 2], [own[name]["expected"]] * 2, color="black")
    axes.set_xticks(range(len(sets)), [name.replace("imagenet_", "") for name in sets])
    axes.set(ylabel="top-1, %", ylim=(0, 100))
    figure.legend(loc="outside upper center", ncols=min(3, len(models)), fontsize="small")
    return figure


STUDIES = {
    "robustness": Study(
        "How much accuracy do classifiers keep on other test images than those of ImageNet?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "images of": lambda row: row["data"],
            "images": lambda row: row["images"],
            **verdicts("top-1 %"),
        },
        source="the question of XCiT (arXiv:2106.09681), Table 2 (V2, ReaL), and the sets -A, -R and Sketch",
        expected="as timm measured the same weights, on ImageNet as the authors publish them; within 0.1 points, and"
        " two standard errors of a part of the images",
        needs="published weights and the sets as their archives unpack: --imagenet, --v2, --a, --r, --sketch, --real;"
        " those that are not given are left out",
        small="two minutes of one processor: five small models on the digits, their images changed in four ways",
        flops=flops,
        weights=WEIGHTS,
        draw=draw,
    )
}
