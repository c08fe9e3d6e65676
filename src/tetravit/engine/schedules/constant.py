"""`constant`: linear from `start` to `peak`, then `peak`. `linear`: then linear to `floor`."""

from collections.abc import Callable

from tetravit.engine.schedules.base import Span


def constant(span: Span) -> Callable[[int], float]:
    return lambda step: _warmed(span, step) if step < span.warmup else span.peak


def linear(span: Span) -> Callable[[int], float]:
    length = max(1, span.total - span.cooldown - span.warmup)

    def value(step: int) -> float:
        if step < span.warmup:
            return _warmed(span, step)
        return span.peak + (span.floor - span.peak) * min(1.0, (step - span.warmup) / length)

    return value


def _warmed(span: Span, step: int) -> float:
    return span.start + (span.peak - span.start) * step / span.warmup


SCHEDULES = {"constant": constant, "linear": linear}
