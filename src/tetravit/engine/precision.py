"""Precision of a training step: autocast, and the loss scale of fp16."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bf16", "fp16"]


def chosen(precision: Precision, device: torch.device) -> Precision:
    """Resolve `auto`: bf16 on a GPU that supports it, else float32."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context for forward passes."""
    if precision in ("float32", "auto"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


class LossScale:
    """Dynamic loss scaling for fp16: halved on overflow, doubled after `patience` steps without one.

    The scale stays on the device, without a synchronization. With `active=False` it is 1.
    """

    def __init__(self, device: torch.device, *, active: bool, patience: int = 2000) -> None:
        self.active = active
        self.patience = patience
        self._scale = torch.full((), 2.0**16 if self.active else 1.0, device=device)
        self._good = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The scaled loss, for `backward`."""
        return loss * self._scale if self.active else loss

    @property
    def factor(self) -> Tensor:
        """The scale, a scalar on the device."""
        return self._scale

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide accumulated gradients by the scale."""
        if self.active and gradients:
            torch._foreach_mul_(gradients, 1.0 / self._scale)

    @property
    def excuse(self) -> Tensor:
        """Whether the scale can cause non-finite gradients."""
        return self._scale > 1.0

    @torch.no_grad()
    def update(self, overflow: Tensor) -> None:
        """Update the scale. `overflow`: 1 if the gradients were not finite and the step is skipped, else 0."""
        if not self.active:
            return
        self._good = torch.where(overflow > 0, 0.0, self._good + 1)
        grow = self._good >= self.patience
        self._scale = torch.where(
            overflow > 0, self._scale * 0.5, torch.where(grow, self._scale * 2.0, self._scale)
        )
        self._good = torch.where(grow, 0.0, self._good)

    def state(self) -> dict[str, float]:
        return {"scale": self._scale.item(), "good": self._good.item()}

    def load(self, state: dict[str, float]) -> None:
        self._scale.fill_(state["scale"])
        self._good.fill_(state["good"])
