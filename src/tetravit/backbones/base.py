"""The contract of every backbone: from images to feature maps, patch features or one embedding."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tetravit.layers.recompute import recomputed
from tetravit.layers.selective_recompute import selective_recompute
from tetravit.structures import AttentionKind, AttentionMap, TokenAttention

SMALLEST_IMAGE = 32  # minimum side in pixels; below it the deepest map of a pyramid would be empty


class Backbone(nn.Module):
    """Images (B, in_chans, Hi, Wi) of any height and width from 32 pixels up -> maps or embeddings.

    Second derivatives and forward-mode differentiation need `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`:
    PyTorch's fused attention implements neither.

    A family sets `channels`, `strides`, `embed_dim` in its constructor and implements `feature_maps`,
    `forward_features`, `pool`, `stages`, `attention_kinds` and `_attention`. Every constructor accepts `image_size`,
    `in_chans` and `drop_path`.

    channels, strides: one entry per level of `feature_maps`, shallow to deep.
    embed_dim: width of the embedding.
    num_embeddings: embeddings per image, each with its own classification head; 1, or 2 with a distillation token.
    num_prefix: tokens before the patches in the output of `forward_features`.
    map_norm: epsilon of the LayerNorm that dense heads apply to every level; None: no norm.
    attention_kinds: the kinds of `AttentionMap` of the family.
    task_options: constructor options of the authors' detection and segmentation releases, under "detect" and
    "segment". dense_only: name prefixes of parameters that classifiers do not have.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embed_dim: int
    num_embeddings: int = 1
    num_prefix: int = 0
    attention_kinds: tuple[AttentionKind, ...] = ()
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
        """Images -> normed tokens (B, N, C) before pooling, with the class token first if there is one."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """Features (B, N, C) of `forward_features` -> one embedding per image (B, embed_dim)."""
        raise NotImplementedError

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of `forward_features`, for images of this size in pixels."""
        stride = self.strides[-1]
        return (height + stride - 1) // stride, (width + stride - 1) // stride

    def centre(self, stride: int) -> float:
        """The pixel, counted from 0, at the centre of the first token of a map of this stride.

        Token i is centred on `stride * i + centre(stride)`: the middle of a patch; 0 where 3 x 3 convolutions of
        stride 2 with padding 1 make the tokens.
        """
        return (stride - 1) / 2

    @property
    def cam_layer(self) -> str:
        """The module for class activation maps: the deepest one from which every patch reaches the embedding."""
        return "norm"

    def patch_features(self, images: Tensor) -> Tensor:
        """Images -> normed patch features on their grid (B, embed_dim, H, W), without prefix tokens.

        One map at the stride of the last level, for evaluating local self-supervised features.
        """
        patches = self.forward_features(images)[:, self.num_prefix :]
        return patches.mT.unflatten(2, self.grid(images.shape[2], images.shape[3]))

    def attention(
        self, images: Tensor, *, kinds: Collection[AttentionKind] | None = None
    ) -> list[AttentionMap]:
        """Images -> the attention weights of every layer, in order of depth, in float32.

        For inspection: full attention matrices are computed, so use few images, and evaluation mode.

        Args:
            images: (B, in_chans, Hi, Wi).
            kinds: requested kinds, to save time and memory; None: all kinds of the family.

        Raises:
            ValueError: for a kind that the family does not have.
        """
        return list(self.attention_layers(images, kinds=kinds))

    def attention_layers(
        self, images: Tensor, *, kinds: Collection[AttentionKind] | None = None
    ) -> Iterator[AttentionMap]:
        """As `attention`, one record at a time, so that the weights of one layer are in memory at a time.

        Raises:
            ValueError: for a kind that the family does not have.
        """
        wanted = self.attention_kinds if kinds is None else tuple(kinds)
        for kind in wanted:
            if kind not in self.attention_kinds:
                known = ", ".join(self.attention_kinds)
                raise ValueError(f"{type(self).__name__} has attention of kind {known}; got {kind!r}.")
        return self._attention(images, frozenset(wanted))

    def token_attention(self, images: Tensor) -> Iterator[TokenAttention]:
        """Images -> attention among all tokens, one layer at a time in order of depth, of kinds "self" and "gated".

        Weights are computed for a few queries at a time, so images may be large.

        Raises:
            ValueError: for a family without global self-attention.
        """
        raise ValueError(f"{type(self).__name__} has no layers in which all tokens attend to all tokens.")

    def _attention(self, images: Tensor, kinds: frozenset[AttentionKind]) -> Iterator[AttentionMap]:
        """The attention maps of these kinds, in order of depth."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images -> embeddings (B, embed_dim), the input of the classification head."""
        return self.pool(self.forward_features(images))

    def embeddings(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> the `num_embeddings` embeddings (B, embed_dim); `forward` returns their mean."""
        return (self(images),)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay in the authors' training (besides biases and norms)."""
        return set()

    def prepare_for_export(self, height: int, width: int) -> None:
        """Select the fastest implementations for images of about this size; outputs are the same at any size.

        For captured graphs, which hold for every size; eager models select by the size of each batch.
        """

    def stages(self) -> list[list[nn.Module]]:
        """Groups of modules in order of depth, stem first: the unit of freezing and layer-wise decay."""
        raise NotImplementedError

    def set_grad_checkpointing(self, mode: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.checkpoint_blocks = mode

    def freeze(self, num_stages: int) -> None:
        """Freeze the first `num_stages` groups of `stages()`; their norms keep their statistics.

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
        """As `nn.Module.train`, but frozen groups stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def __prepare_scriptable__(self) -> Self:
        """Hook of torch.jit.script.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "torch.jit.script has no support for these models; use torch.export.export, torch.jit.trace, or"
            ' tetravit.export(model, "FILE.onnx").'
        )

    def _frozen(self) -> list[nn.Module]:
        return [m for group in self.stages()[: self.num_frozen] for m in group] if self.num_frozen else []

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """`block(*inputs)`, recomputed in the backward pass with checkpointing, else only its cheap parts."""
        if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
            return recomputed(block, *inputs)
        with selective_recompute(inputs[0]):
            return block(*inputs)

    def check(self, images: Tensor) -> None:
        """Check the images.

        Raises:
            ValueError: for a wrong rank, channel count or integer dtype, or a side below 32 pixels.
        """
        if isinstance(images, torch.fx.Proxy):
            raise ValueError(
                "torch.fx.symbolic_trace cannot trace models of any image size; use torch.export.export, or"
                " tetravit.create_feature_extractor for the outputs of named modules."
            )
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images must be (B, {self.in_chans}, Hi, Wi); got {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise ValueError(f"images must be float, normalized; got {images.dtype}. Use model.preprocess.")
        if images.shape[2] < SMALLEST_IMAGE or images.shape[3] < SMALLEST_IMAGE:
            size = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images must be at least {SMALLEST_IMAGE} pixels high and wide; got {size}.")
