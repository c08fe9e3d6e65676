"""One program per shape by torch's own compiler, with the weights laid out for this processor."""

import torch
from torch import Tensor

from tetravit.runtimes.base import Backend, Outputs, Runner, Source, folded


def build(source: Source) -> Runner:
    from torch._inductor import config

    compiled = torch.compile(folded(source.model), dynamic=False)

    def run(images: Tensor) -> Outputs:
        with torch.no_grad(), config.patch(freezing=True):
            return compiled(images)

    return run


BACKENDS = {"compile": Backend(build, devices=("cpu", "cuda"), slow=True)}
