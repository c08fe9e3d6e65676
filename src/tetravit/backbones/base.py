"""The contract of every backbone: an image goes in, feature maps or one embedding come out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALLEST_IMAGE = 32  # pixels a side; below that the deepest map of a pyramid would be empty


class Backbone(nn.Module):
    """Images (B, in_chans, Hi, Wi) of any height and width from 32 pixels up -> maps or embeddings.

    A family sets `channels`, `strides`, `embed_dim` in its constructor and writes `feature_maps`,
    `forward_features` and `pool`. Every constructor takes `image_size`, `in_chans` and `drop_path`.

    channels, strides: one entry per level of `feature_maps`, shallow to deep.
    embed_dim: width of the embedding.
    num_embeddings: how many embeddings of an image classification reads, each with a head of its own; 1 but for
    distillation tokens.
    map_norm: epsilon of the LayerNorm that dense heads put on every level; None where they read the maps raw.
    task_options: constructor options that the authors' detection and segmentation releases use instead,
    under "detect" and "segment". dense_only: beginnings of the names of parameters that classifiers do not have.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embed_dim: int
    num_embeddings: int = 1
    map_norm: float | None = None
    task_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    dense_only: ClassVar[tuple[str, ...]] = ()

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.checkpoint_blocks = False
        self.num_frozen = 0

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images -> one (B, channels[i], ~Hi / strides[i], ~Wi / strides[i]) per level, shallow to deep."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Images -> normed tokens (B, N, C) before pooling, the class token first where there is one."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """What `forward_features` gives -> one embedding per image (B, embed_dim)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images -> embeddings (B, embed_dim), the input of the classification head."""
        return self.pool(self.forward_features(images))

    def embeddings(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> the `num_embeddings` embeddings (B, embed_dim) whose mean `forward` gives."""
        return (self(images),)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the authors' training never decays (beyond biases and norms)."""
        return set()

    def expect(self, height: int, width: int) -> None:
        """Settle on what is fastest for images of about this size; the answers stay the same, at any size.

        For graphs that are captured: elsewhere models look at the size of each batch.
        """

    def stages(self) -> list[list[nn.Module]]:
        """The modules in order of depth, in groups, stem first: what freezing and layer-wise decay count."""
        raise NotImplementedError

    def set_grad_checkpointing(self, mode: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.checkpoint_blocks = mode

    def freeze(self, num_stages: int) -> None:
        """Stop training the first `num_stages` groups of `stages()`; their norms keep their statistics.

        Raises:
            ValueError: if there are fewer groups.
        """
        groups = self.stages()
        if not 0 <= num_stages <= len(groups):
            raise ValueError(f"num_stages is between 0 and {len(groups)}; got {num_stages}.")
        self.num_frozen = num_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [m for group in self.stages()[: self.num_frozen] for m in group] if self.num_frozen else []

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """`block(*inputs)`, recomputed in the backward pass where checkpointing is on."""
        if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return block(*inputs)  # type: ignore[no-any-return]

    def check(self, images: Tensor) -> None:
        """Refuse what no backbone can read, in words that name the promise.

        Raises:
            ValueError: for another rank, channel count, integer pixels or a side below 32 pixels.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images must be (B, {self.in_chans}, Hi, Wi); got {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise ValueError(f"images must be float, normalized; got {images.dtype}. Use model.preprocess.")
        if images.shape[2] < SMALLEST_IMAGE or images.shape[3] < SMALLEST_IMAGE:
            size = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images must be at least {SMALLEST_IMAGE} pixels high and wide; got {size}.")
