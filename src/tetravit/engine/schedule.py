"""Learning rate as a pure function of the step: nothing to save, nothing to resume."""

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
