"""The published detectors on COCO (XCiT, Table 5)."""

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

SIZES = ("tiny_12", "small_12", "small_24", "medium_24")
WEIGHTS = tuple(f"xcit_{size}_p{patch}.coco_mask_rcnn" for size in SIZES for patch in (16, 8))
SCORES = ("box_ap", "mask_ap")
IMAGES = 5_000  # of the validation part


def measure(
    *,
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="Published detectors.")] = ",".join(WEIGHTS),
    data_root: Annotated[str, typer.Option(metavar="DIR", help="COCO 2017.")] = "",
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of validation images; default: all.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Small detectors with patches of 16 and 8 pixels, on drawings.")
    ] = False,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="With --small: steps of training.")] = 60,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
    done: Mapping[str, Row] = {},
) -> Iterator[dict[str, Any]]:
    """Two rows per detector, box AP and mask AP. Source: XCiT, Table 5.

    Raises:
        ValueError: for no data, or weights that are no published detectors.
    """
    if small:
        yield from _small(images, steps, device, on_run, done)
        return
    yield from published(
        "detect",
        weights,
        data_root,
        "COCO 2017",
        SCORES,
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
        for row in trained_on_drawings(
            "shapes-det", "mask_rcnn", patch, steps, f"small xcit, patches of {patch}", SCORES,
            key=" ".join(map(str, ("small", patch, steps, images))), images=images, device=device, done=done,
            on_run=on_run,
        ):  # fmt: skip
            first = coarse.setdefault(row["score"], row)
            yield one_run_beside(row, first, "patches of 16")


def flops(*, weights: str, images: int | None, **_: Any) -> float:
    """Operations of the images for the weights that are named."""
    return 2.0 * (images or IMAGES) * macs([name.strip() for name in weights.split(",")])


def draw(rows: Sequence[Row]) -> "Figure":
    """Box AP and mask AP of each detector as bars, published figures as lines."""
    return bars(rows, lambda row: f"{row['weights']}, {row['score'].replace('_ap', ' AP')}", "AP, %")


STUDIES = {
    "coco": Study(
        "What box AP and mask AP do the published detectors have on COCO?",
        measure,
        {
            "weights": lambda row: row["weights"],
            "score": lambda row: row["score"],
            "images": lambda row: row["images"],
            **verdicts("%"),
        },
        source="XCiT (arXiv:2106.09681), Table 5: Mask R-CNN, 36 epochs",
        expected="as the authors' README has them; within 0.2 points, an assumption about other implementations",
        needs="published weights, COCO 2017 with its annotations (--data-root) and pycocotools; the AP of a part"
        " (--images N) is no estimate of that of all images",
        small="about two minutes of one processor: two small detectors on drawings of shapes",
        flops=flops,
        weights=WEIGHTS,
        draw=draw,
    )
}
