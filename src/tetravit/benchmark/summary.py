"""Tables of stored benchmark rows, one line per model: those in docs and results.

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
    """Rows that `tetravit benchmark --into` has kept."""
    return [Contest(**json.loads(line)) for line in Path(path).read_text().splitlines()]


def contests(rows: Iterable[Contest]) -> dict[tuple[object, ...], list[Contest]]:
    """Rows by what was measured: (mode, dtype, batch, size, busy, model); of several runs the last."""
    found: dict[tuple[object, ...], list[Contest]] = {}
    for row in rows:
        key = (row.mode, row.dtype, row.batch, row.size, row.busy, row.model)
        same = found.get(key, [])
        again = any(one.contender == row.contender for one in same)
        one_run = bool(same) and not again and _run(same[0]) == _run(row)
        found[key] = [*same, row] if one_run else [row]
    return found


def summary(rows: Iterable[Contest], *, mode: str, dtype: str, batch: int, size: int, busy: int = 0) -> str:
    """A table with a line per model: images per second, ratios within one run, the share of peak.

    The last line has the geometric means over the models.

    Raises:
        ValueError: if nothing of the kind was measured, or not on one machine.
    """
    kept = [
        {row.contender: row for row in found if row.images_per_s}
        for key, found in contests(rows).items()
        if key[:5] == (mode, dtype, batch, size, busy)
    ]
    if not kept:
        beside = f", {busy} cores kept busy" if busy else ""
        raise ValueError(f"No row has {mode}, {dtype}, batch {batch}, {size} px{beside}.")
    if len({_machine(row) for found in kept for row in found.values()}) > 1:
        raise ValueError("Rows of different machines share no table.")
    ours = [name for name in OURS if any(name in found for found in kept)]
    others = any(_best_other(found) for found in kept)
    titles = ["model", "timm", *(["timm, fastest form"] if others else []), *(TITLES[n] for n in ours)]
    ratios = [f"{_short(name)} : timm" for name in ours] + (
        [f"{_short(ours[-1])} : fastest"] if others else []
    )
    titles += [*ratios, "of peak"]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "--:|" * (len(titles) - 1)]
    means: list[list[float]] = [[] for _ in range(len(ratios) + 1)]
    for found in kept:
        figures = _figures(found, ours, others)
        for mean, value in zip(means, figures, strict=True):
            mean.extend([] if value is None else [value])
        cells = [next(iter(found.values())).model, _rate(found.get("timm"))]
        if others:
            best = _best_other(found)
            cells.append(f"{_rate(best)} {OTHERS[best.contender]}" if best else "-")
        cells += [_rate(found.get(name)) for name in ours]
        lines.append(f"| {' | '.join([*cells, *_shown(figures)])} |")
    if len(kept) > 1:
        whole = [statistics.geometric_mean(v) if len(v) == len(kept) else None for v in means]
        empty = [""] * (len(titles) - len(means) - 1)
        lines.append(f"| {' | '.join(['geometric mean', *empty, *_shown(whole)])} |")
    first = next(iter(kept[0].values()))
    processor = f"{first.device}, {first.threads} threads" if first.threads else first.device
    spread = max(row.spread or 0 for found in kept for row in found.values())
    beside = beside_words([row for found in kept for row in found.values()])
    about = f"Images per second; {MODES[first.mode]}, {dtype}, batch {batch}, {size} px; {processor}; torch"
    return "\n".join(
        [*lines, "", f"{about} {first.torch}, {first.date}; spreads up to {spread:.0%}{beside}."]
    )


def _figures(found: dict[str, Contest], ours: Sequence[str], others: bool) -> list[float | None]:
    """Ratios to timm of each of ours, of the last of them to the fastest other, its share of that peak."""
    timm, last = found.get("timm"), found.get(ours[-1])
    ratios = [_ratio(found.get(name), timm) for name in ours]
    return [*ratios, *([_ratio(last, _best_other(found))] if others else []), last.share if last else None]


def _shown(figures: Sequence[float | None]) -> list[str]:
    *ratios, share = figures
    texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return [*texts, "-" if share is None else f"{share:.0%}"]


def _best_other(found: dict[str, Contest]) -> Contest | None:
    """The fastest of timm's model in another form than eager."""
    rows = [row for name, row in found.items() if name in OTHERS and name != "timm"]
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
    """The shared settings of the rows of one benchmark."""
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
