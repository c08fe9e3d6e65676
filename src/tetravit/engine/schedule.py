"""Learning rate as a pure function of the step: nothing to save, nothing to resume.

`warmup_cosine` is what recipes run. The other two are the schedules of the authors' releases with their
peculiarities, for runs that repeat them.
"""

import math


def warmup_cosine(
    step: int, *, total: int, warmup: int, peak: float, start: float = 0.0, floor: float = 0.0
) -> float:
    """The rate of optimisation step `step`, counted from 0.

    A line from `start` to `peak` over the first `warmup` steps, then half a cosine from `peak` to `floor`, which
    the last of the `total` steps comes one step short of. Where `floor` or `start` lies above `peak` (a fine-tuning
    run with a small rate), `peak` is used instead, so that the rate never rises above what was asked for.
    """
    start, floor = min(start, peak), min(floor, peak)
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


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
