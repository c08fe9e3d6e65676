"""The contract of a schedule: a function of a `Span` that returns a function of the step, counted from 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """Inputs of a schedule.

    total: steps of the run. per_epoch: steps per epoch. epochs: of the run. warmup: steps from `start` to `peak`.
    cooldown: steps at the end at `floor`. start, peak, floor: values; for a learning rate, neither start nor floor is
    above peak. power: of `poly`. milestones: epochs at which `steps` multiplies by gamma. options:
    `optim.schedule_options`, for schedules with further options.
    """

    total: int
    per_epoch: int
    epochs: int
    peak: float
    start: float = 0.0
    floor: float = 0.0
    warmup: int = 0
    cooldown: int = 0
    power: float = 1.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)
