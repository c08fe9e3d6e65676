"""Two linear layers and an exact GELU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.cache import capturing

PART = 2**20  # hidden values at a time and processor core: they stay near it, and their memory is used again


class Mlp(nn.Module):
    """(..., C) -> (..., hidden) -> (..., C).

    In evaluation on a processor the tokens pass in parts: the hidden features of all of them at once would be
    the largest tensor of most models, and fetching its memory takes as long as the arithmetic.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or capturing():
            return self.whole(x)
        tokens = max(1, PART // self.fc1.out_features) * torch.get_num_threads()
        parts = [self.whole(part) for part in x.flatten(0, -2).split(tokens)]
        return torch.cat(parts).view(x.shape)

    def whole(self, x: Tensor) -> Tensor:
        """The same, all tokens at once."""
        return self.fc2(F.gelu(self.fc1(x)))
