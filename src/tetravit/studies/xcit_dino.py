"""XCiT's self-supervised features by nearest neighbours and by a linear classifier (Table 3)."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, verdicts
from tetravit.studies.parts.figures import bars
from tetravit.studies.parts.scores import beside
from tetravit.studies.parts.tables import evaluated, names, need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = tuple(
    f"xcit_{size}.dino" for size in ("small_12_p16", "small_12_p8", "medium_24_p16", "medium_24_p8")
)
PROTOCOLS = {"knn": "knn_20", "linear": "linear"}
IMAGES = 1_281_167 + 50_000


def measure(
    *,
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="Published features.")] = ",".join(WEIGHTS),
    protocol: Annotated[
        str, typer.Option(help="knn: 20 nearest neighbours; linear: a classifier is trained on the features.")
    ] = "knn",
    data_root: Annotated[str, typer.Option(metavar="DIR", help="ImageNet.")] = "",
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of validation images; default: all.")
    ] = None,
    images_per_class: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="With knn: training images of each class that vote; 0: all."),
    ] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="A small XCiT on the digits: untrained, and after DINO.")
    ] = False,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="With --small: epochs of DINO.")] = 15,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """One row per weights. Source: XCiT, Table 3.

    Raises:
        ValueError: for another protocol, no data, or weights that are no published features.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol is knn or linear; got {protocol!r}.")
    if small:
        yield from _small(protocol, images, epochs, device, on_run, done)
        return
    from tetravit.weights import CHECKPOINTS

    need(data_root, "ImageNet, its training images too")
    known = [row.name for row in CHECKPOINTS.values() if row.task == "embed"]
    overrides = [f"data.root={data_root}", f"evaluate.protocol={protocol}"]
    if protocol == "linear":
        overrides.append("evaluate.features=augmented")
    elif images_per_class:
        overrides.append(f"evaluate.images_per_class={images_per_class}")
    differs = f"{images_per_class} training images a class" if images_per_class and protocol == "knn" else ""
    for name in names(weights, known):
        yield from evaluated(
            name, overrides, (PROTOCOLS[protocol],), key=" ".join(map(str, (name, *overrides, images))),
            facts={"weights": name, "protocol": protocol}, images=images, device=device, done=done, on_run=on_run,
            differs=differs,
        )  # fmt: skip


def _small(
    protocol: str,
    images: int | None,
    epochs: int,
    device: str,
    on_run: Callable[[str], object],
    done: Mapping[str, Row],
) -> Iterator[dict[str, Any]]:
    from tetravit.recipe import find, load
    from tetravit.runs import train

    shared = [
        "data.name=digits", "data.batch_size=64", "data.workers=0", f"run.device={device}", "run.evaluate_epochs=0",
        "run.save_epochs=0", "run.save_minutes=0", "run.log_steps=1000",
    ]  # fmt: skip
    forms = {
        "untrained": ["epochs=1", "optim.lr=1e-12", "optim.min_lr=0"],
        f"{epochs} epochs of DINO": [f"epochs={epochs}"],
    }
    first: dict[str, Any] | None = None
    for about, settings in forms.items():
        key = " ".join(map(str, ("small", protocol, about, images)))
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            if f"{key} {PROTOCOLS[protocol]}" not in done:
                on_run(f"training a small XCiT: {about}")
                train(
                    load(find("mnist_dino"), [*shared, *settings, "optim.warmup_epochs=0"]), run, reporters=[]
                )
            for row in evaluated(
                run / "last.safetensors", [f"evaluate.protocol={protocol}"], (PROTOCOLS[protocol],), key=key,
                facts={"weights": f"small xcit, {about}", "protocol": protocol}, images=images, device=device,
                done=done, on_run=on_run,
            ):  # fmt: skip
                first = first or row
                yield beside(row, first, "the untrained model")


def flops(*, weights: str, images: int | None, images_per_class: int, **_: Any) -> float:
    """Operations of the features of the training and the validation images."""
    from tetravit.benchmark.flops import table

    counts = table()
    models = [name.strip().partition(".")[0] for name in weights.split(",")]
    each = (1000 * images_per_class or IMAGES - 50_000) + (images or 50_000)
    return 2.0 * each * sum(counts[model].inference_macs for model in models if model in counts)


def draw(rows: Sequence[Row]) -> "Figure":
    """Top-1 of each weights as bars, published figures as lines."""
    return bars(rows, lambda row: f"{row['weights']}, {row['protocol']}", "top-1, %")


STUDIES = {
    "xcit-dino": Study(
        "How well do XCiT's self-supervised features classify by nearest neighbours?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "protocol": lambda row: row["protocol"],
            "images": lambda row: row["images"],
            **verdicts("top-1 %"),
        },
        source="XCiT (arXiv:2106.09681), Table 3: 20 nearest neighbours among all training images, or a linear"
        " classifier",
        expected="as the authors' README has them; within 0.1 points (linear: 0.2) and two standard errors of a part"
        " of the images",
        needs="published weights and ImageNet with its training images (--data-root)",
        small="two minutes of one processor: DINO on the digits",
        flops=flops,
        weights=WEIGHTS,
        draw=draw,
    )
}
