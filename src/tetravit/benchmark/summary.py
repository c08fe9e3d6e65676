"""Tables of stored benchmark rows, one line per model, for docs and results.

python -m tetravit.benchmark.summary results/speed.jsonl
"""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tetravit.benchmark.against import Contest
from tetravit.benchmark.table import MODES, beside_words

OURS = ("plain", "torch", "optimized")
OTHERS = {
    "timm": "timm",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
TITLES = {"plain": "ours", "torch": "ours, torch alone", "optimized": "ours, optimized"}


def read(path: str | Path) -> list[Contest]:
    """The rows of a file that `tetravit benchmark --into` has written."""
    return [Contest(**json.loads(line)) for line in Path(path).read_text().splitlines()]


def contests(rows: Iterable[Contest]) -> dict[tuple[object, ...], list[Contest]]:
    """Rows grouped by (mode, dtype, batch, size, busy, model); of several runs the last."""
    groups: dict[tuple[object, ...], list[Contest]] = {}
    for row in rows:
        key = (row.mode, row.dtype, row.batch, row.size, row.busy, row.model)
        same = groups.get(key, [])
        again = any(one.contender == row.contender for one in same)
        one_run = bool(same) and not again and _run(same[0]) == _run(row)
        groups[key] = [*same, row] if one_run else [row]
    return groups


def summary(rows: Iterable[Contest], *, mode: str, dtype: str, batch: int, size: int, busy: int = 0) -> str:
    """A table with a line per model: images per second, ratios within one run, the share of peak.

    The last line has the geometric means over the models.

    Raises:
        ValueError: if there are no such rows, or rows of several machines.
    """
    groups = [
        {row.contender: row for row in group if row.images_per_s}
        for key, group in contests(rows).items()
        if key[:5] == (mode, dtype, batch, size, busy)
    ]
    if not groups:
        beside = f", {busy} cores kept busy" if busy else ""
        raise ValueError(f"No row has {mode}, {dtype}, batch {batch}, {size} px{beside}.")
    if len({_machine(row) for group in groups for row in group.values()}) > 1:
        raise ValueError("Rows of different machines share no table.")
    ours = [name for name in OURS if any(name in group for group in groups)]
    others = any(_best_other(group) for group in groups)
    titles = ["model", "timm", *(["timm, fastest form"] if others else []), *(TITLES[n] for n in ours)]
    ratios = [f"{_short(name)} : timm" for name in ours] + (
        [f"{_short(ours[-1])} : fastest"] if others else []
    )
    titles += [*ratios, "of peak"]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "--:|" * (len(titles) - 1)]
    means: list[list[float]] = [[] for _ in range(len(ratios) + 1)]
    for group in groups:
        figures = _figures(group, ours, others)
        for mean, value in zip(means, figures, strict=True):
            mean.extend([] if value is None else [value])
        cells = [next(iter(group.values())).model, _rate(group.get("timm"))]
        if others:
            best = _best_other(group)
            cells.append(f"{_rate(best)} {OTHERS[best.contender]}" if best else "-")
        cells += [_rate(group.get(name)) for name in ours]
        lines.append(f"| {' | '.join([*cells, *_shown(figures)])} |")
    if len(groups) > 1:
        whole = [statistics.geometric_mean(v) if len(v) == len(groups) else None for v in means]
        empty = [""] * (len(titles) - len(means) - 1)
        lines.append(f"| {' | '.join(['geometric mean', *empty, *_shown(whole)])} |")
    first = next(iter(groups[0].values()))
    processor = f"{first.device}, {first.threads} threads" if first.threads else first.device
    spread = max(row.spread or 0 for group in groups for row in group.values())
    beside = beside_words([row for group in groups for row in group.values()])
    about = f"Images per second; {MODES[first.mode]}, {dtype}, batch {batch}, {size} px; {processor}; torch"
    return "\n".join(
        [*lines, "", f"{about} {first.torch}, {first.date}; spreads up to {spread:.0%}{beside}."]
    )


def _figures(group: dict[str, Contest], ours: Sequence[str], others: bool) -> list[float | None]:
    """Ratios of our contenders to timm, of the last one to the fastest other, and its share of the peak."""
    timm, last = group.get("timm"), group.get(ours[-1])
    ratios = [_ratio(group.get(name), timm) for name in ours]
    return [*ratios, *([_ratio(last, _best_other(group))] if others else []), last.share if last else None]


def _shown(figures: Sequence[float | None]) -> list[str]:
    *ratios, share = figures
    texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return [*texts, "-" if share is None else f"{share:.0%}"]


def _best_other(group: dict[str, Contest]) -> Contest | None:
    """The fastest row of timm's model among those that are not eager."""
    rows = [row for name, row in group.items() if name in OTHERS and name != "timm"]
    return max(rows, key=lambda row: row.images_per_s or 0, default=None)


def _ratio(row: Contest | None, other: Contest | None) -> float | None:
    return (
        row.images_per_s / other.images_per_s
        if row and other and row.images_per_s and other.images_per_s
        else None
    )


def _rate(row: Contest | None) -> str:
    return "-" if row is None else f"{row.images_per_s:.3g}"


def _short(name: str) -> str:
    return TITLES[name].removeprefix("ours, ")


def _run(row: Contest) -> tuple[object, ...]:
    """Values that the rows of one benchmark share."""
    return row.product_tflops, row.copy_gb_s, row.date


def _machine(row: Contest) -> tuple[object, ...]:
    return row.device, row.threads, row.torch


if __name__ == "__main__":
    everything = read(sys.argv[1])
    for kind in dict.fromkeys(key[:5] for key in contests(everything)):
        mode, dtype, *counts = map(str, kind)
        batch, size, busy = map(int, counts)
        print(summary(everything, mode=mode, dtype=dtype, batch=batch, size=size, busy=busy))
        print()
