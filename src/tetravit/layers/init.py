"""Initialisation of parameters, on tensors without values too."""

from torch import Tensor, nn
from torch._subclasses import FakeTensor


def trunc_normal_(tensor: Tensor, std: float) -> None:
    """As `nn.init.trunc_normal_`, which looks at the values that it draws; under FakeTensorMode there are none."""
    if not isinstance(tensor, FakeTensor):
        nn.init.trunc_normal_(tensor, std=std)
