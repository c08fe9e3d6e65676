"""Parameter initialisation that also works on fake tensors."""

from torch import Tensor, nn
from torch._subclasses import FakeTensor


def trunc_normal_(tensor: Tensor, std: float) -> None:
    """As `nn.init.trunc_normal_`, but without branches on values, which FakeTensorMode does not support."""
    if not isinstance(tensor, FakeTensor):
        nn.init.trunc_normal_(tensor, std=std)
