"""Embedding -> logits: one linear layer, as in every one of the four papers."""

from torch import Tensor, nn

from tetravit.layers.init import trunc_normal_


class LinearHead(nn.Linear):
    """(B, embed_dim) -> logits (B, K)."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(embed_dim, num_classes)

    def reset_parameters(self) -> None:
        trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class Embedding(nn.Identity):
    """No head: the embedding is the answer."""

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding
