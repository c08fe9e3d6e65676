"""Linear classifier on the embedding, as in all four papers.

Shapes: B images, C embed_dim, K classes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.heads.base import Head, count_rows
from tetravit.layers.init import trunc_normal_


class LinearHead(Head, nn.Linear):
    """(B, C) -> logits (B, K)."""

    kind = "classify"
    fresh = ("weight", "bias")

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(embed_dim, num_classes)
        self.num_classes = num_classes

    def reset_parameters(self) -> None:
        trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, embedding: Tensor, sizes: Any = None, targets: Any = None) -> Tensor:
        return nn.Linear.forward(self, embedding)

    def loss(self, logits: Tensor, targets: Tensor, sizes: Any = None) -> dict[str, Tensor]:
        """Mean cross-entropy for labels (B,) or soft labels (B, K), in float32."""
        return {"loss_class": F.cross_entropy(logits.float(), targets)}

    def decode(self, logits: Tensor) -> Tensor:
        """Logits (B, K) -> probabilities (B, K) float32."""
        return logits.float().softmax(dim=1)

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        return count_rows(state, ["weight"])


class Embedding(nn.Identity):
    """No head: the output is the embedding."""

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding


HEADS = {"linear": LinearHead}
