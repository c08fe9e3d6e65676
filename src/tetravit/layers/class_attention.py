"""Class attention (CaiT, Touvron et al. 2021, arXiv:2103.17239; used by XCiT).

Shapes: B batch, N patches, C width, D = C // heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.heads import to_heads
from tetravit.layers.selective_recompute import recomputable


class ClassAttention(nn.Module):
    """Attention with the class token as the only query."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}.")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        """Normed class token (B, 1, C) and patches (B, N, C) -> the updated token (B, 1, C)."""
        q, k, v = self._heads(token, patches)
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, D)
        return self.proj(x.transpose(1, 2).flatten(2))

    def attention(self, token: Tensor, patches: Tensor) -> Tensor:
        """Attention weights of the class token over itself and the patches (B, heads, 1 + N)."""
        q, k, _ = self._heads(token, patches)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).squeeze(2)

    def values(self, token: Tensor, patches: Tensor) -> Tensor:
        """The values of the token and the patches (B, heads, 1 + N, D)."""
        return self._heads(token, patches)[2]

    def _heads(self, token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, 1, D), keys and values (B, heads, 1 + N, D)."""
        (q,) = to_heads(token, self.q, 1, self.num_heads)
        both = recomputable(_joined(token, patches), _joined, token, patches)
        k, v = to_heads(both, self.kv, 2, self.num_heads)
        return q, k, v


def _joined(token: Tensor, patches: Tensor) -> Tensor:
    return torch.cat((token, patches), dim=1)
