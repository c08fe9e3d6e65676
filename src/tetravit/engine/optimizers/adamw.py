"""AdamW (arXiv:1711.05101): Adam with decoupled weight decay."""

from typing import Any

import torch

from tetravit.engine.optimizers.base import Groups, OptimizerRow, checked_options, without_compiler


def build(groups: Groups, settings: Any) -> torch.optim.Optimizer:
    checked_options("adamw", settings.options, {})
    kind: Any = without_compiler(torch.optim.AdamW)
    optimizer: torch.optim.Optimizer = kind(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )
    return optimizer


OPTIMIZERS = {"adamw": OptimizerRow(build, slots=lambda settings: 2)}
