"""LARS (You et al. 2017, arXiv:1708.03888) as in the code of DINO: learning rates scaled by weight and update norms.

Source: facebookresearch/dino@7c446df utils.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tetravit.engine.optimizers.base import Groups, OptimizerRow, checked_options, without_compiler

OPTIONS = {"eta": 0.001}


class LARS(Optimizer):
    """Momentum SGD; the update of a matrix is scaled by eta |p| / |gradient + weight_decay p|, or by 1 for a zero
    norm.

    1-D parameters use plain momentum without weight decay. Accepts `found_inf` as torch's fused optimizers do: if it
    is 1, the step is skipped without a synchronization.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
    ) -> None:
        # fused: the loop passes `found_inf`.
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta, "fused": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skip = None if self.found_inf is None else self.found_inf > 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group, skip)
        return loss

    def _move(self, p: Tensor, group: dict[str, Any], skip: Tensor | None) -> None:
        assert p.grad is not None
        update = p.grad
        if p.ndim > 1:
            update = update.add(p, alpha=group["weight_decay"])
            length, change = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
            both = (length > 0) & (change > 0)
            update = update * torch.where(both, group["eta"] * length / change, 1.0)
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average = state["momentum_buffer"]
        moved = average * group["momentum"] + update
        if skip is not None:
            average.copy_(torch.where(skip, average, moved))
            p.copy_(torch.where(skip, p, p - group["lr"] * moved))
        else:
            average.copy_(moved)
            p.sub_(moved, alpha=group["lr"])


def build(groups: Groups, settings: Any) -> Optimizer:
    options = checked_options("lars", settings.options, OPTIONS)
    kind: Any = without_compiler(LARS)
    optimizer: Optimizer = kind(groups, lr=settings.lr, momentum=settings.momentum, eta=options["eta"])
    return optimizer


OPTIMIZERS = {"lars": OptimizerRow(build, slots=lambda settings: 1)}
