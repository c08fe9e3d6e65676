"""Compare the outputs of a written file with those of the model.

Shapes: B batch, C channels, P detections, (Hi, Wi) image in pixels.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tetravit.data.shapes import draw
from tetravit.data.transforms.normalize import Normalize
from tetravit.exports.base import Announce, Run
from tetravit.exports.parts.certificate import OutputDifference, Recorded, Speed
from tetravit.models.portable import Portable, flat
from tetravit.structures import IMAGENET_MEAN, IMAGENET_STD

BATCHES = (1, 3)
APART = (27, 61)  # steps in height and width between test sizes, if every side is allowed
SAME = 0.9  # IoU above which two detections of a class are matched
SECONDS = 0.3  # of measurement per program
SAMPLES = 64  # recorded values per output
MOST = 20  # recorded detections per image
DRAWN = 2  # generated scenes with recorded outputs

Picture = Callable[[int, int], Tensor]  # height, width -> a preprocessed image (C, Hi, Wi)


@dataclass(frozen=True)
class Compared:
    """Differences between a file and its model.

    difference: the largest, relative to the largest output; worst: the input shape where it occurred. outputs: the
    same per output. equal: shares of equal predictions. matched: share of a detector's objects found by both.
    """

    difference: float
    worst: str
    shapes: tuple[tuple[int, ...], ...]
    objects: int | None
    outputs: tuple[OutputDifference, ...] = ()
    equal: Mapping[str, float] = field(default_factory=dict)
    matched: float = 1.0


def compare(
    model: Portable,
    run: Run,
    batches: Iterable[Tensor],
    detections: Literal["all", "matched"] = "all",
) -> Compared:
    """Compare both on batches of preprocessed images.

    Args:
        model: in evaluation mode, on the CPU.
        run: runs the written file.
        batches: (B, C, Hi, Wi), from `batches_of`.
        detections: whose differences count: "all", where an unmatched object is an infinite difference; or "matched"
            ones only, because rounding may add and remove objects.
    """
    worst, where, shapes = -1.0, "", []
    objects: int | None = None
    tally = _Tally(model)
    for images in batches:
        count, _, height, width = images.shape
        shapes.append(tuple(images.shape))
        inputs = (images, *model.other_inputs(images))
        with torch.no_grad():
            expected = flat(model(*inputs))
        got = run(inputs)
        tally.add(got, expected)
        difference = model.difference(got, expected) if detections == "all" else tally.last
        more = model.count_objects(expected)
        objects = objects if more is None else (objects or 0) + more
        if not difference <= worst:
            worst, where = difference, f"{count} x {height} x {width}"
    return Compared(worst, where, tuple(shapes), objects, tally.outputs(), tally.equal(), tally.matched())


def batches_of(model: Portable, pictures: Sequence[Picture], sides: tuple[int, int]) -> Iterator[Tensor]:
    """Batches of the pictures, preprocessed at two or three sizes with two batch sizes.

    Args:
        model: defines the allowed sides.
        pictures: one or more.
        sides: height and width of the first size; the others are larger and smaller, within the limits of the model.
    """
    turn = itertools.cycle(pictures)
    taken = 0
    for height, width in _sizes(sides, model.program_sides):
        for count in BATCHES:
            yield torch.stack([next(turn)(height, width) for _ in range(count)])
            taken += count
    while taken < len(pictures):
        count = min(BATCHES[-1], len(pictures) - taken)
        yield torch.stack([next(turn)(*sides) for _ in range(count)])
        taken += count


def announced(batches: Iterable[Tensor], announce: Announce) -> Iterator[Tensor]:
    """The batches, each announced when it is taken."""
    for i, images in enumerate(batches, 1):
        count, _, height, width = images.shape
        announce(f"Comparing with the model: batch {i}, {count} x {height} x {width}")
        yield images


def _sizes(sides: tuple[int, int], allowed: range) -> list[tuple[int, int]]:
    """The first size, a larger one (smaller if that exceeds the limit), and a smaller one if possible."""
    apart = APART if allowed.step == 1 else (allowed.step, 2 * allowed.step)
    height, width = ((side + by, side - by) for side, by in zip(sides, apart, strict=True))
    larger = [more if more in allowed else less for more, less in (height, width)]
    smaller = [max(less, allowed.start) for _, less in (height, width)]
    return list(dict.fromkeys((sides, (larger[0], larger[1]), (smaller[0], smaller[1]))))


def pictures(model: Any, count: int, height: int, width: int) -> Tensor:
    """Generated scenes (B, C, Hi, Wi), preprocessed for the model; noise if it does not take three channels."""
    mean, std = colours_of(model)
    return torch.stack([drawing(i, mean, std)(height, width) for i in range(count)])


def colours_of(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation used to normalize the inputs of a model."""
    if hasattr(model, "input"):
        return model.input.mean, model.input.std
    channels = model.backbone.in_chans
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)


def drawing(index: int, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """A generated scene, normalized, identical on all machines; noise if the model does not take three channels."""

    def picture(height: int, width: int) -> Tensor:
        if len(mean) != 3:
            seeded = torch.Generator().manual_seed(index)
            return torch.randn(len(mean), height, width, generator=seeded)
        drawn = draw(index, split="val", size=max(height, width), most=5).image
        image = torch.from_numpy(drawn).permute(2, 0, 1)[:, :height, :width]
        out: Tensor = Normalize(mean, std)(image)
        return out

    return picture


class _Tally:
    """Differences and counts of equal predictions over batches. last: the largest difference in the last batch."""

    def __init__(self, model: Portable) -> None:
        self.names, self.kind = model.output_names, getattr(model, "kind", "")
        self.last = 0.0
        self._largest = dict.fromkeys(self.names, 0.0)
        self._sum, self._count = dict.fromkeys(self.names, 0.0), dict.fromkeys(self.names, 0)
        self._equal = self._predicted = 0
        self._detects = "valid" in self.names

    def add(self, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        self.last = 0.0
        if self._detects:
            self._add_detections(*(dict(zip(self.names, x, strict=True)) for x in (got, expected)))
            return
        for name, mine, theirs in zip(self.names, got, expected, strict=True):
            self._add(name, mine, theirs, theirs.abs().max().clamp(min=1).item())
        if self.kind in ("classify", "segment") and self.names == ("logits",) and not math.isinf(self.last):
            same = got[0].argmax(dim=1) == expected[0].argmax(dim=1)
            self._equal += int(same.sum())
            self._predicted += same.numel()

    def _add(self, name: str, got: Tensor, expected: Tensor, scale: float) -> None:
        if got.shape != expected.shape:
            self.last = self._largest[name] = math.inf
            return
        if not got.numel():
            return
        apart = (got.double() - expected.double()).abs() / scale
        largest = math.inf if apart.isnan().any() else apart.max().item()
        self.last = max(self.last, largest)
        self._largest[name] = max(self._largest[name], largest)
        self._sum[name] += apart.sum().item()
        self._count[name] += apart.numel()

    def _add_detections(self, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        for i in range(len(expected["valid"])):
            mine, theirs = ({k: v[i][x["valid"][i]] for k, v in x.items()} for x in (got, expected))
            self._predicted += max(len(mine["boxes"]), len(theirs["boxes"]))
            pairs = matches(mine, theirs)
            self._equal += len(pairs)
            if not pairs:
                continue
            rows = torch.tensor(pairs).T
            for name in self.names:
                if name in ("labels", "valid"):  # matched detections have equal labels
                    continue
                scale = theirs["boxes"].abs().max().clamp(min=1).item() if name == "boxes" else 1.0
                self._add(name, mine[name][rows[0]], theirs[name][rows[1]], scale)

    def outputs(self) -> tuple[OutputDifference, ...]:
        named = [name for name in self.names if not self._detects or name not in ("labels", "valid")]
        return tuple(
            OutputDifference(name, self._largest[name], self._sum[name] / max(1, self._count[name]))
            for name in named
        )

    def equal(self) -> dict[str, float]:
        if not self._predicted:
            return {}
        name = "detections" if self._detects else {"classify": "top-1"}.get(self.kind, "pixels")
        return {name: self._equal / self._predicted}

    def matched(self) -> float:
        return self._equal / self._predicted if self._detects and self._predicted else 1.0


def matches(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Pairs (got, expected) of matched detections of an image: equal class, IoU of at least `SAME`.

    One-to-one; the highest-ranked detections of `expected` are matched first.
    """
    mine, theirs = got["boxes"], expected["boxes"]
    if not len(mine) or not len(theirs):
        return []
    low = torch.maximum(mine[:, None, :2], theirs[None, :, :2])
    high = torch.minimum(mine[:, None, 2:], theirs[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)  # (got, expected)
    area = [(x[:, 2:] - x[:, :2]).prod(dim=-1) for x in (mine, theirs)]
    iou = common / (area[0][:, None] + area[1][None] - common).clamp(min=1e-9)
    same = (mine[:, None] == theirs[None]).all(dim=-1)  # includes boxes of zero area
    iou = torch.where(same, 1.0, iou).nan_to_num(nan=-1.0)
    iou[got["labels"][:, None] != expected["labels"][None]] = -1
    pairs = []
    for i in expected["scores"].argsort(descending=True).tolist():
        best = int(iou[:, i].argmax())
        if iou[best, i] >= SAME:
            pairs.append((best, i))
            iou[best] = -1
    return pairs


def speed(model: Portable, run: Run, images: Tensor) -> Speed:
    """Median images per second of both, called alternately on the same images."""
    inputs = (images, *model.other_inputs(images))
    taken: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    with torch.inference_mode():
        while len(taken[0]) < 3 or time.perf_counter() - start < SECONDS:
            for calls, call in zip(taken, (lambda: model(*inputs), lambda: run(inputs)), strict=True):
                before = time.perf_counter()
                call()
                calls.append(time.perf_counter() - before)
    plain, file = (len(images) / max(1e-9, statistics.median(calls)) for calls in taken)
    return Speed(tuple(images.shape), float(f"{plain:.4g}"), float(f"{file:.4g}"))


def record(
    run: Run,
    names: Sequence[str],
    sides: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Recorded:
    """The outputs `names` of a file for generated scenes, recorded for comparison on other machines."""
    images = torch.stack([drawing(i, mean, std)(*sides) for i in range(DRAWN)])
    values = _summary(_outputs(run, names, images))
    return Recorded(tuple(images.shape), tuple(mean), tuple(std), values)


def compare_recorded(recorded: Recorded, names: Sequence[str], run: Run) -> float:
    """Largest difference between the outputs `names` of a file and recorded ones, relative to the largest output."""
    count, _, height, width = recorded.shape
    images = torch.stack([drawing(i, recorded.mean, recorded.std)(height, width) for i in range(count)])
    outputs = _outputs(run, names, images)
    if "valid" not in names:
        pairs = [(_summary({name: x})[name], recorded.values[name]) for name, x in outputs.items()]
        return max(_apart(torch.tensor(got), torch.tensor(wanted)) for got, wanted in pairs)
    largest = 0.0
    for i, rows in enumerate(recorded.values["detections"]):
        mine = _valid(outputs, i)
        scale = max((abs(v) for row in rows for v in row["box"]), default=1.0)
        for row in rows:
            box = (mine["boxes"] - torch.tensor(row["box"])).abs().amax(dim=1) / max(1.0, scale)
            both = torch.maximum(box, (mine["scores"] - row["score"]).abs())
            both = both[mine["labels"] == row["label"]]
            largest = max(largest, both.min().item() if len(both) else math.inf)
    return largest


def _outputs(run: Run, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    inputs = (images, padded_sizes(images)) if "valid" in names else (images,)
    return dict(zip(names, run(inputs), strict=True))


def padded_sizes(images: Tensor) -> Tensor:
    """Image sizes (B, 2) within a padded batch, in the form of `Detector.other_inputs`."""
    height, width = images.shape[2:]
    return torch.tensor([[height - 7 * i, width - 5 * i] for i in range(len(images))])


def _summary(outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The recorded part of outputs, JSON-ready."""
    if "valid" in outputs:
        return {"detections": [_detections(outputs, i) for i in range(len(outputs["valid"]))]}
    summary = {}
    for name, x in outputs.items():
        flattened = x.flatten()
        rows = torch.linspace(0, len(flattened) - 1, min(SAMPLES, len(flattened))).long()
        summary[name] = _rounded(flattened[rows])
    return summary


def _detections(outputs: Mapping[str, Tensor], i: int) -> list[dict[str, Any]]:
    kept = {name: x[:MOST] for name, x in _valid(outputs, i).items()}
    rows = zip(kept["boxes"], kept["scores"], kept["labels"], strict=True)
    return [
        {"box": _rounded(box), "score": _rounded(score[None])[0], "label": int(k)} for box, score, k in rows
    ]


def _valid(outputs: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: outputs[name][i][outputs["valid"][i]] for name in ("boxes", "scores", "labels")}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


def _apart(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape or got.isnan().any():
        return math.inf
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
