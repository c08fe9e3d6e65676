"""Numbers that are not finite: found without making the GPU wait, stopped before they reach a weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class NotFinite(ValueError):
    """The loss or the gradient of a step is NaN or infinite; the weights are as they were before it.

    step: counted from 0. names: what the images of the step are called, on all ranks that saw the fault.
    """

    def __init__(self, step: int, what: str, names: Sequence[str], *, text: str = "") -> None:
        self.step, self.what, self.names = step, what, list(names)
        shown = ", ".join(self.names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        super().__init__(
            text
            or f"The {what} of step {step} is not finite; the weights are as they were before it. Images: {shown}."
        )


def takes_found_inf(optimizer: Optimizer) -> bool:
    """Whether an optimizer leaves out a step that is marked on the device, as torch's fused ones do."""
    return bool(optimizer.defaults.get("fused"))


class Guard:
    """Marks bad steps on the device and tells the host about them `lag` steps later.

    On a CPU the host looks at once. On a GPU it looks at step t while step t + 1 is under way, so that the
    queue of kernels never runs dry; in between, the fused optimizers leave the weights alone because the mark
    is handed to them as `found_inf`, and it stays set for every later step. Tasks get it as `good`, for what they
    move besides the weights. Buffers that a forward pass writes (BatchNorm statistics) are put back from a copy.
    Averaged weights may have moved by then; nothing saves them.
    """

    def __init__(self, model: nn.Module, device: torch.device, lag: int | None = None) -> None:
        self.lag = (1 if device.type == "cuda" else 0) if lag is None else lag
        self.mark = torch.zeros((), device=device)
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._copies = [[b.clone() for b in self._buffers] for _ in range(1 + self.lag)]
        self._pending: list[tuple[int, Tensor, Any, Sequence[str]]] = []

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Remember the buffers as they are before the forward passes of `step`."""
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
        """Judge a step between its backward pass and the optimizer.

        Returns:
            Scalars on the device: `good`, bool, whether loss and gradients are finite, here and in every step
            before; and 1.0 where fp16 gradients overflowed, else 0.0.

        excuse: whether gradients carried a loss scale that can still shrink: then their overflow is no fault,
        and the step is left out.
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

    def found(self, *, all_steps: bool = False) -> tuple[int, str, Sequence[str]] | None:
        """The first bad step whose mark has arrived: its number, what was bad, its images.

        all_steps: wait for every step, also the one just queued (before anything is saved or evaluated).
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
        """Put the buffers back to what they were before `step`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies[step % len(self._copies)])
