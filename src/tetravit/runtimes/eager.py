"""The model as it is, with convolutions that have taken in the norms behind them."""

import torch
from torch import Tensor

from tetravit.runtimes.base import Backend, Outputs, Runner, Source, folded


def build(source: Source) -> Runner:
    model = folded(source.model)

    def run(images: Tensor) -> Outputs:
        with torch.inference_mode():
            return model(images)

    return run


BACKENDS = {"eager": Backend(build, devices=("cpu", "cuda", "mps"))}
