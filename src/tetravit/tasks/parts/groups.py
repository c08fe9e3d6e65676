"""A sum of losses, with the activations of one part in memory at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def summed(parts: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], scale: Tensor) -> Tensor:
    """The sum of scalar losses; the gradient of each part is computed before the next part runs.

    Args:
        parts: functions that compute the losses, under the caller's autocast.
        parameters: all leaves with a gradient.
        scale: factor on each loss in its backward pass, so that half-precision gradients do not underflow; removed
            afterwards.
    """
    if len(parts) == 1 or not torch.is_grad_enabled():
        losses = [part() for part in parts]
        return torch.stack(losses).sum()
    return _Summed.apply(parts, scale, *parameters)


class _Summed(torch.autograd.Function):
    """Computes gradients in the forward pass, and multiplies them by the incoming gradient in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, parts: Sequence[Callable[[], Tensor]], scale: Tensor, *parameters: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=scale.device)
        gradients: list[Tensor | None] = [None] * len(parameters)
        for part in parts:
            with torch.enable_grad():
                loss = part()
                computed = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
            torch.clear_autocast_cache()
            total += loss.detach()
            gradients = [
                new if old is None else old if new is None else old.add_(new)
                for old, new in zip(gradients, computed, strict=True)
            ]
            del loss, computed  # free the graph before the next one is built
        ctx.scale = scale.clone()
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad / ctx.scale
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(None if g is None else g.mul_(factor) for g in gradients)
