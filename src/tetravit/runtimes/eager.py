"""The eager model with batch norms folded into its convolutions."""

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
