"""Stochastic gradient descent with momentum; after Nesterov in `faithful` runs, as in the DeiT code."""

from typing import Any

import torch

from tetravit.engine.optimizers.base import Groups, OptimizerRow, checked_options


def build(groups: Groups, settings: Any) -> torch.optim.Optimizer:
    checked_options("sgd", settings.options, {})
    nesterov = settings.faithful and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)


OPTIMIZERS = {"sgd": OptimizerRow(build, slots=lambda settings: 1 if settings.momentum else 0)}
