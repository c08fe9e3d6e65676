"""AdamW (arXiv:1711.05101): adaptive rates, weight decay apart from the gradient."""

from typing import Any

import torch

from tetravit.engine.optimizers.base import Groups, OptimizerRow, checked_options


def build(groups: Groups, settings: Any) -> torch.optim.Optimizer:
    checked_options("adamw", settings.options, {})
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


OPTIMIZERS = {"adamw": OptimizerRow(build, slots=lambda settings: 2)}
