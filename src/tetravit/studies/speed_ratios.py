"""Throughput of the papers' tables as ratios, which carry over between machines better than images per second."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.studies.base import Row, Study, compared, verdicts
from tetravit.studies.parts.figures import bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# model -> images/s as printed. ConViT, Table 1: one GP100, batch 128. Twins, Table 1: one V100, batch 192.
CONVIT_TABLE_1 = {
    "convit_tiny": 734, "convit_tiny_plus": 625, "convit_small": 305, "convit_small_plus": 382, "convit_base": 141,
    "convit_base_plus": 96, "deit_tiny": 1442, "deit_small": 587, "deit_base": 187,
}  # fmt: skip
TWINS_TABLE_1 = {
    "twins_pcpvt_small": 815, "twins_pcpvt_base": 525, "twins_pcpvt_large": 367,
    "twins_svt_small": 1059, "twins_svt_base": 469, "twins_svt_large": 288,
}  # fmt: skip
CONVIT_PAIRS = (("convit_tiny", "deit_tiny"), ("convit_small", "deit_small"), ("convit_base", "deit_base"))
TWINS_PAIRS = tuple((f"twins_svt_{size}", f"twins_pcpvt_{size}") for size in ("small", "base", "large"))
SPREAD = 0.2  # other hardware and other implementations


def ratios(
    printed: Mapping[str, int], pairs: tuple[tuple[str, str], ...]
) -> Callable[..., Iterator[dict[str, Any]]]:
    """The `measure` of a study of these pairs, fast over slow."""

    def measure(
        *,
        batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call.")] = 8,
        rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Measurements per pair.")] = 5,
        small: Annotated[bool, typer.Option("--small", help="The smallest pair, at 64 pixels.")] = False,
        device: str = "auto",
        on_run: Callable[[str], object] = lambda text: None,
    ) -> Iterator[dict[str, Any]]:
        """One row per pair, both measured in one run in turns."""
        from tetravit.benchmark.speed import measure as measure_speed
        from tetravit.world import pick_device

        for first, second in pairs[:1] if small else pairs:
            on_run(f"{first} and {second}")
            one, two = measure_speed(
                [first, second],
                size=64 if small else 224,
                batch=2 if small else batch,
                device=pick_device(device),
                rounds=1 if small else rounds,
                seconds=0.05 if small else 0.5,
            )
            expected = None if small else round(printed[first] / printed[second], 2)
            yield {
                "model": first,
                "beside": second,
                "images_per_s": one.images_per_s,
                "beside_images_per_s": two.images_per_s,
                **compared(one.images_per_s / two.images_per_s, expected, SPREAD),
            }

    return measure


COLUMNS: dict[str, Callable[..., Any]] = {
    "model": lambda row: row["model"],
    "beside": lambda row: row["beside"],
    "images/s": lambda row: f"{row['images_per_s']:.1f}",
    "beside images/s": lambda row: f"{row['beside_images_per_s']:.1f}",
    **verdicts("ratio"),
}


def draw(rows: Sequence[Row]) -> "Figure":
    """Each ratio as a bar, those of the table as lines."""
    return bars(rows, lambda row: f"{row['model']} : {row['beside']}", "ratio of images a second", digits=2)


EXPECTED = "ratios of the printed images a second; within 0.2, as cards and implementations differ"
TAKES = "some seconds: the first pair at 64 pixels"
NEEDS = "this machine, some minutes, nothing else running; random weights"
STUDIES = {
    "convit-table1": Study(
        "How fast is ConViT beside DeiT?",
        ratios(CONVIT_TABLE_1, CONVIT_PAIRS),
        COLUMNS,
        source="ConViT (arXiv:2103.10697v2), Table 1, on one GP100; here both without a compiler",
        expected=EXPECTED,
        small=TAKES,
        draw=draw,
        needs=NEEDS,
    ),
    "twins-table1": Study(
        "How fast is Twins-SVT beside Twins-PCPVT?",
        ratios(TWINS_TABLE_1, TWINS_PAIRS),
        COLUMNS,
        source="Twins (arXiv:2104.13840), Table 1, on one V100; here both without a compiler",
        expected=EXPECTED,
        small=TAKES,
        draw=draw,
        needs=NEEDS,
    ),
}
