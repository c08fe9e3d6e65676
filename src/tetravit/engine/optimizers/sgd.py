"""SGD with momentum; Nesterov momentum in `faithful` runs, as in the DeiT code."""

from typing import Any

import torch

from tetravit.engine.optimizers.base import Groups, OptimizerRow, checked_options, without_compiler


def build(groups: Groups, settings: Any) -> torch.optim.Optimizer:
    checked_options("sgd", settings.options, {})
    nesterov = settings.faithful and settings.momentum > 0
    kind: Any = without_compiler(torch.optim.SGD)
    optimizer: torch.optim.Optimizer = kind(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True
    )
    if settings.momentum:
        # Zero-initialised momentum gives the same first step. The fused step rejects lists with missing buffers,
        # which
        # occur for parameters that get their first gradient later.
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS = {"sgd": OptimizerRow(build, slots=lambda settings: 1 if settings.momentum else 0)}
