"""The published segmenters on ADE20K (XCiT, Table 6; Twins, Table 2)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, verdicts
from tetravit.studies.parts.costs import macs
from tetravit.studies.parts.figures import bars
from tetravit.studies.parts.scores import one_run_beside
from tetravit.studies.parts.tables import published, trained_on_drawings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

XCIT = ("tiny_12", "small_12", "small_24", "medium_24")
TWINS = tuple(f"twins_{kind}_{size}" for kind in ("pcpvt", "svt") for size in ("small", "base", "large"))
WEIGHTS = (
    *(
        f"xcit_{size}_p{p}.ade20k_{head}"
        for head in ("semantic_fpn", "upernet")
        for size in XCIT
        for p in (16, 8)
    ),
    *(f"{name}.ade20k_upernet" for name in TWINS),
)
HEADS = {"semantic_fpn": "semantic FPN", "upernet": "UPerNet"}
IMAGES = 2_000  # of the validation part


def measure(
    *,
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="Published segmenters.")] = ",".join(
        WEIGHTS
    ),
    data_root: Annotated[str, typer.Option(metavar="DIR", help="ADE20K.")] = "",
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of validation images; default: all.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Small segmenters with both heads and patch sizes, on drawings.")
    ] = False,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="With --small: steps of training.")] = 200,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """One row per segmenter, mIoU at one scale. Source: XCiT, Table 6; Twins, Table 2.

    Raises:
        ValueError: for no data, or weights that are no published segmenters.
    """
    if small:
        yield from _small(images, steps, device, on_run, done)
        return
    yield from published(
        "segment",
        weights,
        data_root,
        "ADE20K",
        ("miou",),
        images=images,
        device=device,
        done=done,
        on_run=on_run,
    )


def _small(
    images: int | None,
    steps: int,
    device: str,
    on_run: Callable[[str], object],
    done: Mapping[str, Row],
) -> Iterator[dict[str, Any]]:
    coarse: dict[str, dict[str, Any]] = {}
    for patch in (16, 8):
        for head, spoken in HEADS.items():
            for row in trained_on_drawings(
                "shapes-seg", head, patch, steps, f"small xcit, patches of {patch}, {spoken}", ("miou",),
                key=f"small {patch} {head} {steps} {images}", images=images, device=device, done=done, on_run=on_run,
            ):  # fmt: skip
                yield one_run_beside(row, coarse.setdefault(head, row), "patches of 16")


def flops(*, weights: str, images: int | None, **_: Any) -> float:
    """Operations of the images for the weights that are named."""
    return 2.0 * (images or IMAGES) * macs([name.strip() for name in weights.split(",")])


def draw(rows: Sequence[Row]) -> "Figure":
    """mIoU of each segmenter as bars, published figures as lines."""
    return bars(rows, lambda row: row["weights"], "mIoU, %")


STUDIES = {
    "ade20k": Study(
        "What mIoU do the published segmenters have on ADE20K?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "images": lambda row: row["images"],
            **verdicts("mIoU %"),
        },
        source="XCiT (arXiv:2106.09681), Table 6, and Twins (arXiv:2104.13840), Table 2: one scale",
        expected="as the authors' READMEs have them; within 0.2 points, an assumption about other implementations",
        needs="published weights and ADE20K (--data-root); the mIoU of a part (--images N) is no estimate of that of"
        " all images",
        small="about two minutes of one processor: four small segmenters on drawings of shapes",
        flops=flops,
        weights=WEIGHTS,
        draw=draw,
    )
}
