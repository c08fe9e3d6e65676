"""Learning rate schedules as pure functions of the step.

`warmup_cosine` is for recipes of classifiers, `poly` and `staircase` for those of dense tasks. `deit_epochs` and
`gcvit_steps` are the schedules of the authors' code with their peculiarities, for faithful runs.
"""

import math
from collections.abc import Sequence


def warmup_cosine(
    step: int, *, total: int, warmup: int, peak: float, start: float = 0.0, floor: float = 0.0
) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Linear from `start` to `peak` over the first `warmup` steps, then half a cosine from `peak` to `floor`; the last
    of the `total` steps is one step short of `floor`. If `floor` or `start` is above `peak` (fine-tuning with a small
    learning rate), `peak` is used instead, so that the learning rate never exceeds the peak.
    """
    ends = {"start": min(start, peak), "floor": min(floor, peak)}
    return cosine(step, total=total, warmup=warmup, peak=peak, **ends)


def cosine(step: int, *, total: int, warmup: int, peak: float, start: float, floor: float) -> float:
    """The value at step `step`: linear from `start` to `peak` over `warmup` steps, then half a cosine to `floor`.

    The last of the `total` steps is one step short of `floor`, which may be above `peak`.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def poly(
    step: int, *, total: int, warmup: int, peak: float, start: float, floor: float, power: float
) -> float:
    """The learning rate of step `step`: from `peak` to `floor` as (1 - step / total) ** power.

    The warm-up is a factor on it, from start / peak to 1 after `warmup` steps. Source: mmcv 1.x.
    """
    floor = min(floor, peak)
    rate = floor + (peak - floor) * max(0.0, 1.0 - step / total) ** power
    return rate * _warmed(step, warmup, start / peak)


def staircase(
    step: int, *, falls: Sequence[int], gamma: float, warmup: int, peak: float, start: float
) -> float:
    """The learning rate of step `step`: `peak`, times `gamma` from each step in `falls` on; warm-up as in `poly`."""
    return peak * gamma ** sum(step >= fall for fall in falls) * _warmed(step, warmup, start / peak)


def _warmed(step: int, warmup: int, ratio: float) -> float:
    """The warm-up factor: linear from `ratio` to 1."""
    ratio = min(ratio, 1.0)
    return ratio + (1.0 - ratio) * step / warmup if step < warmup else 1.0


def deit_epochs(
    step: int, *, per_epoch: int, epochs: int, warmup: int, peak: float, start: float, floor: float
) -> float:
    """The learning rate of step `step` in the DeiT code, also used for XCiT, ConViT and Twins.

    It changes once per epoch, after the epoch, by the index of the finished epoch: epoch e has the learning rate of e
    - 1, so that epochs 0 and 1 both run at `start`. The cosine spans all `epochs` and is entered at `warmup`, below
    the peak; its last point is never reached.
    """
    return _from_zero(max(0, step // per_epoch - 1), epochs, warmup, peak, start, floor)


def gcvit_steps(
    step: int, *, total: int, cooldown: int, warmup: int, peak: float, start: float, floor: float
) -> float:
    """The learning rate of step `step` in the GC ViT release.

    It changes every step. The cosine includes the warm-up, so it is entered below the peak, and reaches `floor` when
    the last `cooldown` of the `total` steps start.
    """
    return _from_zero(step, total - cooldown, warmup, peak, start, floor)


def _from_zero(t: int, span: int, warmup: int, peak: float, start: float, floor: float) -> float:
    """Linear over the first `warmup` points; then a cosine that includes them; from `span` on `floor`."""
    if t < warmup:
        return start + (peak - start) * t / warmup
    if t >= span:
        return floor
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * t / span))


def dino_table(step: int, *, total: int, warmup: int, peak: float, floor: float) -> float:
    """The value at step `step` in the tables of the DINO code (arXiv:2104.14294).

    Linear from 0 to `peak` over the first `warmup` steps, both ends included: the last of them is at `peak`, and so
    is the first step of the following half cosine, whose last step is one short of `floor`. `floor` may be above
    `peak`, as for the weight decay and the teacher's momentum, which have no warm-up.
    Source: facebookresearch/dino@7c446df utils.py.
    """
    if step < warmup:
        return peak * step / (warmup - 1) if warmup > 1 else 0.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))
