"""Learning rates as pure functions of the step, without state.

`warmup_cosine` is what recipes of classifiers run, `poly` and `staircase` those of dense tasks. `deit_epochs` and
`gcvit_steps` are the schedules of the authors' releases with their peculiarities, for runs that repeat them.
"""

import math
from collections.abc import Sequence


def warmup_cosine(
    step: int, *, total: int, warmup: int, peak: float, start: float = 0.0, floor: float = 0.0
) -> float:
    """The rate of optimisation step `step`, counted from 0.

    A line from `start` to `peak` over the first `warmup` steps, then half a cosine from `peak` to `floor`, which
    the last of the `total` steps comes one step short of. Where `floor` or `start` lies above `peak` (a fine-tuning
    run with a small rate), `peak` is used instead, so that the rate never rises above the peak.
    """
    ends = {"start": min(start, peak), "floor": min(floor, peak)}
    return cosine(step, total=total, warmup=warmup, peak=peak, **ends)


def cosine(step: int, *, total: int, warmup: int, peak: float, start: float, floor: float) -> float:
    """The value at step `step`: a line from `start` to `peak` over `warmup` steps, half a cosine to `floor`.

    The last of the `total` steps is one step short of `floor`, which may be above `peak`.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def poly(
    step: int, *, total: int, warmup: int, peak: float, start: float, floor: float, power: float
) -> float:
    """The rate of step `step`: from `peak` to `floor` as (1 - step / total) ** power.

    A warm-up multiplies it, with start / peak at first and 1 after `warmup` steps. Source: mmcv 1.x.
    """
    floor = min(floor, peak)
    rate = floor + (peak - floor) * max(0.0, 1.0 - step / total) ** power
    return rate * _warmed(step, warmup, start / peak)


def staircase(
    step: int, *, falls: Sequence[int], gamma: float, warmup: int, peak: float, start: float
) -> float:
    """The rate of step `step`: `peak`, times `gamma` from each step in `falls` on; the warm-up of `poly`."""
    return peak * gamma ** sum(step >= fall for fall in falls) * _warmed(step, warmup, start / peak)


def _warmed(step: int, warmup: int, ratio: float) -> float:
    """The factor of a warm-up: a line from `ratio` to 1."""
    ratio = min(ratio, 1.0)
    return ratio + (1.0 - ratio) * step / warmup if step < warmup else 1.0


def deit_epochs(
    step: int, *, per_epoch: int, epochs: int, warmup: int, peak: float, start: float, floor: float
) -> float:
    """The rate of step `step` as the DeiT code sets it, from which XCiT, ConViT and Twins come.

    It moves once per epoch, after it, by the number of the epoch that ended: epoch e runs at the rate meant for
    e - 1, so that epochs 0 and 1 both run at `start`. The cosine spans all `epochs` and begins at its point
    `warmup`, below the peak; its last point is never reached.
    """
    return _from_zero(max(0, step // per_epoch - 1), epochs, warmup, peak, start, floor)


def gcvit_steps(
    step: int, *, total: int, cooldown: int, warmup: int, peak: float, start: float, floor: float
) -> float:
    """The rate of step `step` as the GC ViT release sets it.

    It moves every step. The cosine spans the warm-up too, so it begins below the peak, and has reached `floor`
    when the last `cooldown` of the `total` steps begin.
    """
    return _from_zero(step, total - cooldown, warmup, peak, start, floor)


def _from_zero(t: int, span: int, warmup: int, peak: float, start: float, floor: float) -> float:
    """A line over the first `warmup` points; then a cosine that counts them; from `span` on `floor`."""
    if t < warmup:
        return start + (peak - start) * t / warmup
    if t >= span:
        return floor
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * t / span))


def dino_table(step: int, *, total: int, warmup: int, peak: float, floor: float) -> float:
    """The value at step `step` in the tables of the DINO code (arXiv:2104.14294).

    A line from 0 to `peak` over the first `warmup` steps, both ends included: the last of them is at `peak`, and so
    is the first step of the half cosine that follows, whose last step is one short of `floor`. `floor` may be above
    `peak`, as in the tables of the weight decay and of the teacher's momentum, which have no warm-up.
    Source: facebookresearch/dino@7c446df utils.py.
    """
    if step < warmup:
        return peak * step / (warmup - 1) if warmup > 1 else 0.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))
