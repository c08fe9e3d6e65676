"""Exponential moving average (EMA) of the weights, evaluated beside the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of parameters and float buffers; integer buffers are copied.

    decay: weight of the old average in an update. warmup: bound it by (1 + step) / (10 + step), so that the early
    weights decay quickly.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self._live = dict(model.state_dict(keep_vars=True))
        self._kept = {name: value.detach().clone() for name, value in self._live.items()}
        self._floats = [name for name, value in self._live.items() if value.is_floating_point()]
        self._others = [name for name in self._live if name not in set(self._floats)]

    def at(self, step: int) -> float:
        """The decay after optimizer step `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int, good: Tensor | None = None) -> None:
        """Update the average with the model after optimizer step `step`.

        good: scalar bool on the device; False leaves the average unchanged. None: the step is known to be good.
        """
        kept = [self._kept[name] for name in self._floats]
        live = [self._live[name].detach() for name in self._floats]
        if good is None:
            torch._foreach_lerp_(kept, live, 1.0 - self.at(step))
            for name in self._others:
                self._kept[name].copy_(self._live[name])
            return
        for old, new in zip(kept, live, strict=True):
            old.copy_(torch.where(good, torch.lerp(old, new, 1.0 - self.at(step)), old))
        for name in self._others:
            self._kept[name].copy_(torch.where(good, self._live[name], self._kept[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the model inside the context, and the model's values back afterwards, without a
        copy."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The average, by the parameter names of the model."""
        return dict(self._kept)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load an average from `state`."""
        for name, value in self._kept.items():
            value.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, kept in self._kept.items():
            live = self._live[name].detach()
            held = live.clone()
            live.copy_(kept)
            kept.copy_(held)
