"""Two linear layers and an exact GELU."""

from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """(..., C) -> (..., hidden) -> (..., C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
