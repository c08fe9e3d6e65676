"""Initialisation of parameters, on tensors without values too."""

from torch import Tensor, nn
from torch._subclasses import FakeTensor


def trunc_normal_(tensor: Tensor, std: float) -> None:
    """As `nn.init.trunc_normal_`, which branches on the values that it draws: FakeTensorMode has none."""
    if not isinstance(tensor, FakeTensor):
        nn.init.trunc_normal_(tensor, std=std)
