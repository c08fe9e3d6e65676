"""Detects non-finite losses and gradients without a GPU synchronization, before they reach a weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class NotFinite(ValueError):
    """The loss or the gradient of a step is NaN or infinite; the weights are unchanged.

    step: counted from 0. names: images of the step, from all ranks with the fault.
    """

    def __init__(self, step: int, quantity: str, names: Sequence[str], *, text: str = "") -> None:
        self.step, self.quantity, self.names = step, quantity, list(names)
        shown = ", ".join(self.names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        super().__init__(
            text
            or f"The {quantity} of step {step} is not finite; the weights are as they were before it."
            f" Images: {shown}."
        )


def takes_found_inf(optimizer: Optimizer) -> bool:
    """Whether an optimizer skips a step marked on the device (`found_inf`), as torch's fused optimizers do."""
    return bool(optimizer.defaults.get("fused"))


class Guard:
    """Marks bad steps on the device, and reports them to the host `lag` steps later.

    On a CPU the host checks immediately. On a GPU it checks step t while step t + 1 is running, so that the kernel
    queue never empties; in between, fused optimizers do not change the weights, because the mark is passed as
    `found_inf` and stays set for all later steps. Tasks receive it as `good`, for state other than weights. Buffers
    written in a forward pass (BatchNorm statistics) are restored from a copy. The EMA may be updated meanwhile, but
    is not saved.
    """

    def __init__(self, model: nn.Module, device: torch.device, lag: int | None = None) -> None:
        self.lag = (1 if device.type == "cuda" else 0) if lag is None else lag
        self.mark = torch.zeros((), device=device)
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._copies = [[b.clone() for b in self._buffers] for _ in range(1 + self.lag)]
        self._pending: list[tuple[int, Tensor, Any, Sequence[str]]] = []

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Copy the buffers before the forward passes of `step`."""
        if self._buffers:
            torch._foreach_copy_(self._copies[step % len(self._copies)], self._buffers)

    @torch.no_grad()
    def after(
        self,
        step: int,
        loss: Tensor,
        norm: Tensor,
        names: Sequence[str],
        optimizer: Optimizer,
        *,
        excuse: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Check a step between its backward pass and the optimizer.

        Returns:
            Scalars on the device: `good`, bool, whether loss and gradients are finite in this and every earlier step;
            and 1.0 if fp16 gradients overflowed, else 0.0.

        excuse: whether the loss scale can still shrink: then an overflow of the gradients is not an error, and the
        step is skipped.
        """
        bad_loss, bad_norm = ~loss.isfinite(), ~norm.isfinite()
        self.mark = torch.maximum(self.mark, (bad_loss | (bad_norm & ~excuse)).float())
        overflow = (bad_norm & excuse).float()
        bad = torch.maximum(self.mark, overflow)
        if takes_found_inf(optimizer):
            optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
        seen = torch.stack((self.mark, bad_loss.float()))
        event = None
        if seen.is_cuda:
            seen, event = seen.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
        self._pending.append((step, seen, event, names))
        return bad == 0, overflow

    def bad_step(self, *, all_steps: bool = False) -> tuple[int, str, Sequence[str]] | None:
        """The first reported bad step: its number, the non-finite quantity, its images.

        all_steps: wait for every step, including the last queued one (before saving or evaluating).
        """
        while len(self._pending) > (0 if all_steps else self.lag):
            step, seen, event, names = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            if seen[0] > 0:
                return step, "loss" if seen[1] > 0 else "gradient", names
        return None

    @torch.no_grad()
    def restore(self, step: int) -> None:
        """Restore the buffers from before `step`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies[step % len(self._copies)])
