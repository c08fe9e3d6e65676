"""Twins: locally-grouped and global sub-sampled attention (Chu et al. 2021, arXiv:2104.13840).

PCPVT is PVT with conditional position encodings; every block is global sub-sampled attention ("G"). SVT alternates
locally-grouped attention within windows ("L") and "G". Maps stay channel-last throughout, so that linear layers,
norms and depthwise convolutions need no transposed copy. Norms and linear layers take tokens (B, N, C): a graph
compiler treats a 4-D tensor as channels-second, and copies.

One file, as for every family: PCPVT and SVT share stages, adapter and global attention.

Shapes: B batch, Hi Wi pixels, H W token grid, N = H * W, C width, D = C // heads, w window side, nW windows per
image, M sub-sampled tokens.
Source of every number: Meituan-AutoML/Twins@c1ff671 gvt.py; detection/gvt.py and segmentation/gvt.py for padding.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import ClassVar, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.backbones.base import Backbone
from tetravit.layers.choices import check_choice
from tetravit.layers.drop_path import DropPath, linear_rates
from tetravit.layers.heads import to_heads
from tetravit.layers.init import trunc_normal_
from tetravit.layers.mlp import Mlp, add_mlp
from tetravit.layers.plain import is_plain_module
from tetravit.layers.residual import add_linear, drawn
from tetravit.layers.selective_recompute import recomputable, recomputable_norm
from tetravit.layers.window import join, padding, windows
from tetravit.structures import AttentionKind, AttentionMap

WindowMask = Literal["none", "segmentation"]
Subsampling = Literal["conv", "separable", "average"]


class TileConv(nn.Conv2d):
    """A convolution of a channel-last map; `of_size`: stride equals kernel, a remainder at the border is cut off.

    The constructor has the signature of `nn.Conv2d`: tools that replace layers rely on it.
    """

    @classmethod
    def of_size(cls, in_dim: int, dim: int, size: int) -> Self:
        return cls(in_dim, dim, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H // size, W // size, dim)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # NCHW as a view, there and back


class PatchEmbed(nn.Module):
    """Patch embedding: tiles of the previous map -> tokens of the next stage (B, H, W, C)."""

    def __init__(self, in_dim: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = TileConv.of_size(in_dim, dim, patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return _over_tokens(self.norm, self.proj(x))


class ConditionalPosition(nn.Module):
    """Conditional position encoding: a zero-padded depthwise convolution (PEG, arXiv:2102.10882)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        near = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # a view, there and back
        return (x.flatten(1, 2) + near.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


class LocalAttention(nn.Module):
    """Self-attention within each window (locally-grouped self-attention, LSA, Sec. 3.2).

    window_mask: "none" attends to the padding of a window too, whose keys and values are the bias of `qkv`, as in the
    detection release; "segmentation" is the mask of the segmentation release, which separates tokens from padding,
    but only if the map is padded both below and to the right.
    mask_padding: mask the padding of windows as keys, whatever `window_mask` is.
    """

    kind: ClassVar[AttentionKind] = "window"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        window_mask: WindowMask = "none",
        *,
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.window_mask, self.mask_padding = window_mask, mask_padding
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normed map (B, H, W, C) -> (B, H, W, C)."""
        grid = (x.shape[1], x.shape[2])
        return self.proj(self.attend(x).flatten(1, 2)).unflatten(1, grid)

    def attend(self, x: Tensor) -> Tensor:
        """Attention without the output projection."""
        grid = (x.shape[1], x.shape[2])
        size = self.window_size
        x_windows, padded = windows(x, size)  # (B * nW, w * w, C)
        x_windows = recomputable(x_windows, lambda x: windows(x, size)[0], x)
        q, k, v = self._heads(x_windows)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(grid, x_windows))

        def joined(attended: Tensor) -> Tensor:
            return join(attended.transpose(1, 2).flatten(2), size, padded, grid)

        return recomputable(joined(attended), joined, attended)

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights within each window (B * nW, heads, w * w, w * w), rows for queries, for a normed map."""
        x_windows, _ = windows(x, self.window_size)
        q, k, _ = self._heads(x_windows)
        scores, mask = q @ k.mT * q.shape[-1] ** -0.5, self._mask((x.shape[1], x.shape[2]), x_windows)
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(dim=-1)

    def record(self, x: Tensor, layer: str, stride: int) -> AttentionMap:
        """Attention weights for a normed map (B, H, W, C) whose tokens are `stride` pixels apart."""
        batch, grid = (x.shape[0], -1), (x.shape[1], x.shape[2])
        x_windows, padded = windows(x, self.window_size)
        below, right = padding(x_windows, self.window_size, grid)
        weights = self.attention(x).float()
        seen = weights.masked_fill((below | right)[:, None, None], 0).sum(dim=-1).unflatten(0, batch)
        counts = (padded[0] // self.window_size, padded[1] // self.window_size)
        weights, centre = weights.unflatten(0, batch), (stride - 1) / 2
        return AttentionMap("window", layer, weights, seen, grid, stride, centre, windows=counts)

    def _heads(self, x_windows: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, each (B * nW, heads, w * w, D)."""
        return to_heads(x_windows, self.qkv, 3, self.num_heads)

    def _mask(self, grid: tuple[int, int], x_windows: Tensor) -> Tensor | None:
        """True where a query may attend to a key (B * nW, 1, 1 or w * w, w * w); None: everywhere.

        The authors add -1000 instead, which gives the same weights.
        """
        if self.window_mask == "none" and not self.mask_padding:
            return None
        below, right = padding(x_windows, self.window_size, grid)
        if self.mask_padding:
            return ~(below | right)[:, None, None, :]
        outside = (below | right) & below.any() & right.any()  # (B * nW, w * w)
        return outside[:, None, :, None] == outside[:, None, None, :]


class TileMean(nn.AvgPool2d):
    """Mean over non-overlapping tiles of a channel-last map; a remainder at the border is cut off."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H // size, W // size, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def subsampler(kind: Subsampling, dim: int, size: int) -> nn.Module:
    """Sub-sampling: a channel-last map (B, H, W, C) -> one token per `size` x `size` tile (Table 6).

    conv: a strided convolution. separable: depthwise, then a linear layer. average: the mean, without parameters.
    """
    if kind == "average":
        return TileMean(size)
    if kind == "separable":
        depthwise = TileConv(dim, dim, size, stride=size, groups=dim)
        return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=nn.Linear(dim, dim)))
    return TileConv.of_size(dim, dim, size)


class GlobalAttention(nn.Module):
    """Global sub-sampled attention (GSA, Sec. 3.2): keys and values are one token per `sr_ratio` x `sr_ratio`
    tile."""

    kind: ClassVar[AttentionKind] = "summary"

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, subsampling: Subsampling = "conv") -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr: nn.Module = subsampler(subsampling, dim, sr_ratio) if sr_ratio > 1 else nn.Identity()
        self.norm: nn.Module = nn.LayerNorm(dim) if sr_ratio > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normed map (B, H, W, C) -> (B, H, W, C)."""
        grid = (x.shape[1], x.shape[2])
        return self.proj(self.attend(x).flatten(1, 2)).unflatten(1, grid)

    def attend(self, x: Tensor) -> Tensor:
        """Attention without the output projection."""
        grid = (x.shape[1], x.shape[2])
        x = F.scaled_dot_product_attention(*self._heads(x))  # (B, heads, N, D)
        return x.transpose(1, 2).flatten(2).unflatten(1, grid)

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights of each token over the sub-sampled tokens (B, heads, N, M), for a normed map."""
        q, k, _ = self._heads(x)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)

    def record(self, x: Tensor, layer: str, stride: int) -> AttentionMap:
        """Attention weights for a normed map (B, H, W, C) whose tokens are `stride` pixels apart.

        Keys are tiles of `sr_ratio` x `sr_ratio` tokens; remaining rows and columns belong to no tile.
        """
        weights, side = self.attention(x).float(), stride * self.sr_ratio
        grid = (x.shape[1], x.shape[2])
        tiles = (grid[0] // self.sr_ratio, grid[1] // self.sr_ratio)
        seen = torch.ones_like(weights[..., 0])
        return AttentionMap("summary", layer, weights, seen, tiles, side, (side - 1) / 2, query_grid=grid)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, N, D), keys and values (B, heads, M, D)."""
        summary = recomputable_norm(self.norm, self.sr(x).flatten(1, 2))
        (q,) = to_heads(x.flatten(1, 2), self.q, 1, self.num_heads)
        k, v = to_heads(summary, self.kv, 2, self.num_heads)
        return q, k, v


class Block(nn.Module):
    """A transformer block on a channel-last map: attention, then MLP, each with a residual."""

    def __init__(
        self, dim: int, attn: LocalAttention | GlobalAttention, mlp_ratio: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)  # (B, N, C)
        if isinstance(self.attn, LocalAttention | GlobalAttention) and is_plain_module(self.attn):
            draw = drawn(x, self.drop_path, self.norm1, self.attn)
            normed = recomputable_norm(self.norm1, x if draw is None else draw.of(x)).unflatten(1, grid)
            attended = self.attn.attend(normed).flatten(1, 2)
            x = add_linear(x, self.attn.proj, attended, self.drop_path, draw=draw)
        else:
            normed = recomputable_norm(self.norm1, x).unflatten(1, grid)
            x = x + self.drop_path(self.attn(normed).flatten(1, 2))
        return add_mlp(x, self.mlp, self.norm2, self.drop_path).unflatten(1, grid)


class Twins(Backbone):
    """Stages of blocks, each at half the resolution of the previous one; the PEG follows the first block of a stage.

    If a stride does not divide a side, the remainder is cut off, as in the authors' code: a map has Hi // stride
    rows. `image_size` has no effect; all backbones accept it.

    dims, depths, num_heads, mlp_ratios, sr_ratios, pattern: one entry per stage.
    sr_ratios: side of the sub-sampling tiles. subsampling: how a tile becomes a token: "conv", "separable" or
        "average" (Table 6).
    pattern: the block types of a stage, repeated to its depth: "L" local, "G" global (Table 5).
    window_size, window_mask, mask_padding: of the "L" blocks; see `LocalAttention`. Published models do not mask
        padding; self-supervised training does, so that padding does not distinguish crops.
    stage_norm: epsilon of a LayerNorm after each stage, whose output is both the level of `feature_maps` and the
        input of the next stage; None: no norm.

    Raises:
        ValueError: if the per-stage arguments differ in length, a width is not divisible by its heads, or an option
            is invalid.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 10, 4),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        mlp_ratios: tuple[int, ...] = (4, 4, 4, 4),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        pattern: tuple[str, ...] = ("LG", "LG", "LG", "LG"),
        subsampling: Subsampling = "conv",
        window_size: int = 7,
        window_mask: WindowMask = "none",
        mask_padding: bool = False,
        stage_norm: float | None = None,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(in_chans)
        _check_stages(dims, depths, num_heads, mlp_ratios, sr_ratios, pattern)
        check_choice("window_mask", window_mask, get_args(WindowMask))
        check_choice("subsampling", subsampling, get_args(Subsampling))
        if window_size < 1:
            raise ValueError(f"A window side is at least 1 token; got window_size={window_size}.")
        self.channels = tuple(dims)
        self.strides = tuple(4 * 2**i for i in range(len(dims)))
        self.embed_dim = dims[-1]
        letters: dict[str, AttentionKind] = {"L": "window", "G": "summary"}
        self.attention_kinds = tuple(kind for key, kind in letters.items() if key in "".join(pattern))
        rates = iter(linear_rates(drop_path, sum(depths)))

        def block(i: int, letter: str) -> Block:
            attn: LocalAttention | GlobalAttention
            if letter == "L":
                attn = LocalAttention(
                    dims[i], num_heads[i], window_size, window_mask, mask_padding=mask_padding
                )
            else:
                attn = GlobalAttention(dims[i], num_heads[i], sr_ratios[i], subsampling)
            return Block(dims[i], attn, mlp_ratios[i], next(rates))

        before = (in_chans, *dims)
        self.patch_embeds = nn.ModuleList(PatchEmbed(before[i], d, 2 if i else 4) for i, d in enumerate(dims))
        self.blocks = nn.ModuleList(
            nn.ModuleList(block(i, letter) for letter in islice(cycle(pattern[i]), depth))
            for i, depth in enumerate(depths)
        )
        self.pos_embeds = nn.ModuleList(ConditionalPosition(dim) for dim in dims)
        self.stage_norms = nn.ModuleList(
            nn.LayerNorm(d, stage_norm) if stage_norm else nn.Identity() for d in dims
        )
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: normal with standard deviation 0.02 in linear layers, fan-out in
        convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def no_weight_decay(self) -> set[str]:
        return {f"pos_embeds.{name}" for name, _ in self.pos_embeds.named_parameters()}

    def stages(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = []
        for embed, (first, *rest), position, norm in self._levels():
            groups += [[embed, first, position], *([block] for block in rest)]
            groups[-1].append(norm)
        groups[-1].append(self.norm)
        return [groups[0][:1], groups[0][1:], *groups[1:]]  # the first embedding is the stem

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return [x.permute(0, 3, 1, 2) for x in self._stage_maps(images)]

    def forward_features(self, images: Tensor) -> Tensor:
        *_, x = self._stage_maps(images)
        return self.norm(x.flatten(1, 2))  # (B, N, C)

    def pool(self, features: Tensor) -> Tensor:
        return features.mean(dim=1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.strides[-1], width // self.strides[-1]

    def _attention(self, images: Tensor, kinds: frozenset[AttentionKind]) -> Iterator[AttentionMap]:
        """Attention weights within windows ("L" blocks) and over sub-sampled tokens ("G" blocks)."""
        self.check(images)
        x = images.permute(0, 2, 3, 1)
        for i, (embed, blocks, position, norm) in enumerate(self._levels()):
            x = embed(x)
            for j, block in enumerate(cast(list[Block], blocks)):
                normed = block.norm1(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))
                name = f"blocks.{i}.{j}.attn"
                if block.attn.kind in kinds:
                    yield block.attn.record(normed, name, self.strides[i])
                x = self.run(block, x)
                if j == 0:
                    x = position(x)
            x = _over_tokens(norm, x)

    def _levels(self) -> Iterator[tuple[nn.Module, list[nn.Module], nn.Module, nn.Module]]:
        """One stage: patch embedding, blocks, the PEG after the first block, the norm."""
        parts = (self.patch_embeds, self.blocks, self.pos_embeds, self.stage_norms)
        for embed, blocks, position, norm in zip(*parts, strict=True):
            yield embed, list(blocks), position, norm  # type: ignore[call-overload]

    def _stage_maps(self, images: Tensor) -> Iterator[Tensor]:
        """Images -> the map (B, H, W, C) after each stage, channel-last."""
        self.check(images)
        x = images.permute(0, 2, 3, 1)
        for embed, (first, *rest), position, norm in self._levels():
            x = position(self.run(first, embed(x)))
            for block in rest:
                x = self.run(block, x)
            x = _over_tokens(norm, x)
            yield x


class SVT(Twins):
    """Alternating local and global blocks; the dense releases add a norm to the map of each stage."""

    dense_only: ClassVar = ("stage_norms.",)
    task_options: ClassVar = {
        "detect": {"stage_norm": 1e-6},
        "segment": {"stage_norm": 1e-6, "window_mask": "segmentation"},
    }


def _over_tokens(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm over the channels of a channel-last map (B, H, W, C)."""
    return norm(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


def _check_stages(
    dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    mlp_ratios: Sequence[int],
    sr_ratios: Sequence[int],
    pattern: Sequence[str],
) -> None:
    counts = [len(option) for option in (dims, depths, num_heads, mlp_ratios, sr_ratios, pattern)]
    if len(set(counts)) > 1:
        names = "dims, depths, num_heads, mlp_ratios, sr_ratios and pattern"
        raise ValueError(f"{names} have one entry per stage; got {', '.join(map(str, counts))} entries.")
    for dim, heads in zip(dims, num_heads, strict=True):
        if dim % heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={heads}.")
    if isinstance(pattern, str) or not all(letters and set(letters) <= {"L", "G"} for letters in pattern):
        raise ValueError(f"pattern has one string of the letters L and G per stage; got {pattern!r}.")


_pcpvt = partial(
    Twins,
    dims=(64, 128, 320, 512),
    num_heads=(1, 2, 5, 8),
    mlp_ratios=(8, 8, 4, 4),
    pattern=("G", "G", "G", "G"),
)

# fmt: off
VARIANTS = {  # Meituan-AutoML/Twins@c1ff671 gvt.py
    "twins_pcpvt_small": partial(_pcpvt, depths=(3, 4, 6, 3)),
    "twins_pcpvt_base":  partial(_pcpvt, depths=(3, 4, 18, 3)),
    "twins_pcpvt_large": partial(_pcpvt, depths=(3, 8, 27, 3)),
    "twins_svt_small":   partial(SVT, dims=(64, 128, 256, 512),  depths=(2, 2, 10, 4), num_heads=(2, 4, 8, 16)),
    "twins_svt_base":    partial(SVT, dims=(96, 192, 384, 768),  depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "twins_svt_large":   partial(SVT, dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}
# fmt: on
ALIASES = {
    "pcpvt_small_v0": "twins_pcpvt_small",
    "pcpvt_base_v0": "twins_pcpvt_base",
    "pcpvt_large_v0": "twins_pcpvt_large",
    "alt_gvt_small": "twins_svt_small",
    "alt_gvt_base": "twins_svt_base",
    "alt_gvt_large": "twins_svt_large",
}
