"""GC ViT: Global Context Vision Transformers (Hatamizadeh et al. 2023, arXiv:2206.09959).

Self-attention within windows. In every second block the queries are global: computed from the whole map, reduced to
the size of one window, and shared by all windows of an image.

One file, as for every family: block, stages, attention maps and the table of sizes follow one another.

Shapes: B batch, H W token grid, C width, w window side, N = w * w, nW windows per image, D = C // heads.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.backbones.base import Backbone
from tetravit.kernels.biased_attention import attention_weights, biased_attention
from tetravit.layers.drop_path import Draw, DropPath, linear_rates
from tetravit.layers.heads import to_heads
from tetravit.layers.init import trunc_normal_
from tetravit.layers.mlp import Mlp, add_mlp
from tetravit.layers.plain import can_use_fused, is_capturing, is_plain_module, is_plain_tree
from tetravit.layers.relative_bias import RelativeBias
from tetravit.layers.residual import add_linear, drawn, linear
from tetravit.layers.selective_recompute import recomputable, recomputable_norm
from tetravit.layers.window import Grid, join, padding, windows
from tetravit.structures import AttentionKind, AttentionMap

STAGES = 4
Layout = Literal["map", "windows"]
QUERY_CONVS = (3, 2, 1, 1)  # per stage: number of halvings from the stage's grid to one window at 224


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation of a map (B, H, W, C) (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 4, bias=False)
        self.fc2 = nn.Linear(dim // 4, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)[:, None, None]

    def gate(self, x: Tensor) -> Tensor:
        """A map (B, H, W, C) -> its channel weights (B, C)."""
        return self.channel_weights(x.mean(dim=(1, 2)))

    def channel_weights(self, means: Tensor) -> Tensor:
        """Global average pooling of a map (B, C) -> its channel weights (B, C), in (0, 1)."""
        return self.fc2(F.gelu(self.fc1(means))).sigmoid()


class FusedMBConv(nn.Module):
    """The paper's modified Fused-MBConv, with a residual connection, on a map (B, H, W, C).

    Unlike the original block it has neither an expansion nor a normalization.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.se = SqueezeExcite(dim)
        self.pointwise = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and is_plain_module(self.se, self.pointwise):
            return self.as_convolutions(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        near = _convolve(self.depthwise, x)
        near = recomputable(F.gelu(near), F.gelu, near)
        if not can_use_fused(x, self.se, self.pointwise):
            return x + self.pointwise(self.se(near))
        weight = (
            self.se.gate(near)[:, :, None] * self.pointwise.weight.mT
        )  # (B, C, C): weighs the product, not the map
        return torch.baddbmm(x.flatten(1, 2), near.flatten(1, 2), weight).view(x.shape)

    def as_convolutions(self, x: Tensor) -> Tensor:
        """The same for a map (B, C, H, W), for exported graphs, which keep that layout.

        A version on tokens gives different numbers in OpenVINO 2026.4.
        """
        near = F.gelu(self.depthwise(x))
        gate = self.se.channel_weights(near.mean(dim=(2, 3)))
        return x + F.conv2d(near * gate[:, :, None, None], self.pointwise.weight[:, :, None, None])


class Downsample(nn.Module):
    """A map (B, H, W, C) -> (B, H / 2, W / 2, out_dim), rounded up."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.conv = FusedMBConv(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(_over_tokens(self.norm1, x))
        return _over_tokens(self.norm2, _convolve(self.reduction, x))


class PatchEmbed(nn.Module):
    """Stem: images (B, in_chans, Hi, Wi) -> a map (B, Hi / 4, Wi / 4, C), rounded up, by overlapping strides of 2.

    The maps are largest here. On a CPU the images are processed one per core, so that they stay in its cache; a whole
    batch takes half as long again. With hooks inside, the whole batch is processed at once.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 3, stride=2, padding=1)
        self.conv_down = Downsample(dim, dim)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or is_capturing() or not is_plain_tree(self.proj, self.conv_down):
            return self.whole(images)
        return torch.cat([self.whole(part) for part in images.split(torch.get_num_threads())])

    def whole(self, images: Tensor) -> Tensor:
        """The same for the whole batch at once."""
        return self.conv_down(_convolve(self.proj, images.permute(0, 2, 3, 1).contiguous()))


class GlobalQuery(nn.Module):
    """A stage's map (B, H, W, C) -> global queries (B, heads, N, D), shared by all windows of an image.

    If the halvings do not end at one window, as at other sizes than the paper's, the map is resized to it; at the
    size of a window bicubic resizing is the identity, bitwise.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, *, num_convs: int, num_pools: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.num_pools = num_heads, window_size, num_pools
        self.convs = nn.ModuleList(FusedMBConv(dim) for _ in range(num_convs))

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i < self.num_pools:
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
        x = F.interpolate(x.permute(0, 3, 1, 2), size=(self.window_size,) * 2, mode="bicubic")  # (B, C, w, w)
        return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class WindowAttention(nn.Module):
    """Base of both kinds of attention: heads, relative position bias, output projection."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}.")
        self.num_heads = num_heads
        self.bias = RelativeBias(window_size, num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, query: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Normed windows (B * nW, N, C), global queries (B * nW, heads, N, D) -> windows.

        hidden: mask, True for masked keys (B * nW, N); None: no mask.
        """
        return self.proj(self.attend(x, query, hidden))

    def attend(self, x: Tensor, query: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Attention without the output projection."""
        if torch.compiler.is_exporting():
            q, k, v = self.heads(x, query)
            mask = _masked(self.bias(q.dtype), hidden)
            mask = mask[None] if hidden is None else mask
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            # an exported program must not depend on a kernel's memory layout
            return attended.clone(memory_format=torch.contiguous_format).transpose(1, 2).flatten(2)
        layer, parts = self.projection()
        packed = linear(layer, x).unflatten(2, (parts, self.num_heads, -1))
        bias, given = self.bias(packed.dtype), None if parts == 3 else query
        fused = hidden is None and torch.is_grad_enabled() and bias.requires_grad and can_use_fused(packed)
        return biased_attention(packed, _masked(bias, hidden), given, in_place=fused)

    def attention_weights(self, x: Tensor, query: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Attention weights of each query over the tokens of its window (B * nW, heads, N, N)."""
        q, k, _ = self.heads(x, query)
        return attention_weights(q, k, _masked(self.bias(q.dtype), hidden))

    def heads(self, x: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B * nW, heads, N, D)."""
        layer, parts = self.projection()
        projected = to_heads(x, layer, parts, self.num_heads)
        return projected if parts == 3 else (query, *projected)

    def projection(self) -> tuple[nn.Linear, int]:
        """The projection of the windows, and its number of parts: 3 (q, k, v), or 2 (k, v) with given queries."""
        raise NotImplementedError


class LocalAttention(WindowAttention):
    """Self-attention within each window."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__(dim, num_heads, window_size)
        self.qkv = nn.Linear(dim, 3 * dim)

    def projection(self) -> tuple[nn.Linear, int]:
        return self.qkv, 3


class GlobalAttention(WindowAttention):
    """Global queries of an image attend to the keys and values of each window."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__(dim, num_heads, window_size)
        self.kv = nn.Linear(dim, 2 * dim)

    def projection(self) -> tuple[nn.Linear, int]:
        return self.kv, 2


class Block(nn.Module):
    """Window attention, then an MLP; both with residual."""

    gamma1: Tensor | None
    gamma2: Tensor | None

    def __init__(
        self,
        attn: WindowAttention,
        dim: int,
        *,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        self.mask_padding = mask_padding
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.window_size = attn, attn.bias.window_size
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        for name in ("gamma1", "gamma2"):
            self.register_parameter(name, None if layer_scale is None else _constant(dim, layer_scale))

    def forward(self, x: Tensor, query: Tensor, layout: Layout) -> Tensor:
        """A map (B, H, W, C) or its windows (B, nW, N, C) -> the output of the block in the same form.

        Norms and linear layers take tokens (B, H * W, C): a graph compiler treats a 4-D tensor as channels-second,
        and copies.
        """
        sides = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        fused = isinstance(self.attn, WindowAttention) and is_plain_module(self.attn)
        draw = drawn(x, self.drop_path, self.norm1, self.attn) if fused else None
        rows = x
        if draw is not None:
            rows, query = draw.of(x), _of_images(query, len(x), draw)
        x_windows, padded, hidden = self.windows_of(
            recomputable_norm(self.norm1, rows).unflatten(1, sides), layout
        )
        attn = self.attn.attend if fused else self.attn
        x_windows = attn(x_windows, query) if hidden is None else attn(x_windows, query, hidden)
        if layout == "map":
            attended = join(x_windows, self.window_size, padded, sides).flatten(1, 2)
        else:
            attended = x_windows.view_as(rows)
        if fused:
            x = add_linear(x, self.attn.proj, attended, self.drop_path, self.gamma1, draw)
        else:
            x = x + self.drop_path(attended if self.gamma1 is None else self.gamma1 * attended)
        return add_mlp(x, self.mlp, self.norm2, self.drop_path, self.gamma2).unflatten(1, sides)

    def windows_of(self, x: Tensor, layout: Layout) -> tuple[Tensor, Grid, Tensor | None]:
        """A normed map or its windows -> windows (B * nW, N, C), the padded grid, the mask of keys.

        Padding is zero after the norm: its keys and values are biases of the projection. All tokens of a window
        attend to it, unless `mask_padding` is set: then the mask (B * nW, N) is True for padding.
        """
        if layout == "windows":
            return x.flatten(0, 1), (0, 0), None
        size = self.window_size
        x_windows, padded = windows(x, size)
        x_windows = recomputable(x_windows, lambda x: windows(x, size)[0], x)
        if not self.mask_padding:
            return x_windows, padded, None
        below, right = padding(x_windows, self.window_size, (x.shape[1], x.shape[2]))
        return x_windows, padded, below | right

    def window_weights(self, x: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Grid]:
        """Attention weights for a normed map (B, H, W, C), and the rows and columns of windows.

        Weights (B, nW, heads, N, N), and the sum of each row over real tokens (B, nW, heads, N), in float32.
        """
        x_windows, padded, hidden = self.windows_of(x, "map")
        weights = self.attn.attention_weights(x_windows, query, hidden).float()
        below, right = padding(x_windows, self.window_size, (x.shape[1], x.shape[2]))
        seen = weights.masked_fill((below | right)[:, None, None], 0).sum(dim=-1)
        batch = (x.shape[0], -1)
        counts = (padded[0] // self.window_size, padded[1] // self.window_size)
        return weights.unflatten(0, batch), seen.unflatten(0, batch), counts


class Level(nn.Module):
    """A stage: alternating local and global blocks, followed by downsampling unless it is the last."""

    def __init__(
        self, query: GlobalQuery, blocks: Sequence[Block], downsample: Downsample | None, window_size: int
    ) -> None:
        super().__init__()
        self.query = query
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.window_size = window_size

    def forward(self, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """A stage's map (B, H, W, C) through its blocks; `run` calls a module (see `Backbone.run`).

        All windows of a stage are alike, so a map divisible into windows is partitioned once. Divisibility is tested
        only for known sizes; a dynamic-shape graph uses the general form.
        """
        grid, query, layout = self.begin(x, run)
        if layout == "map":
            for block in self.blocks:
                x = run(block, x, query, layout)
            return x
        w = self.window_size
        x_windows, padded = windows(x, w)
        num_windows = (grid[0] // w) * (grid[1] // w)
        x_windows = x_windows.unflatten(0, (-1, num_windows))  # (B, nW, N, C): stochastic depth is per image
        for block in self.blocks:
            x_windows = run(block, x_windows, query, layout)
        return join(x_windows.flatten(0, 1), w, padded, grid)

    def begin(self, x: Tensor, run: Callable[..., Tensor]) -> tuple[Grid, Tensor, Layout]:
        """The grid of a map, the global queries of each window, and the layout of the block inputs."""
        w, grid = self.window_size, (x.shape[1], x.shape[2])
        num_windows = ((grid[0] + w - 1) // w) * ((grid[1] + w - 1) // w)
        query = _per_window(run(self.query, x), num_windows)
        divided = all(isinstance(side, int) and side % w == 0 for side in grid)  # symbolic sides are not int
        return grid, query, "windows" if divided else "map"


class GCViT(Backbone):
    """Four stages at strides 4, 8, 16, 32, with doubling width.

    Any size: a map not divisible into windows is zero-padded on the right and bottom before each attention, and the
    global queries are resized to a window, as in the authors' detection release. Feature maps are not normed; the
    last one is normed for the embedding.

    Args:
        dim: width of the first stage.
        depths, num_heads: one per stage.
        mlp_ratio: hidden width of the MLPs, as a multiple of the stage's width.
        layer_scale: initial value of the learned factors on both branches of a block; None: no factors.
        image_size: determines the windows, by its shorter side: 1/32 of it, 1/16 in the third stage, rounded up.
        window_size: window sides of the four stages in tokens, independent of the image size.
        query_pooling: whether the third stage computes its queries on its own grid ("keep") or on half of it
            ("pool"); None: "keep" if its windows are larger than those of the last stage.
        mask_padding: whether real tokens of a padded window attend to real tokens only. Off in all published models;
            self-supervised training sets it, so that padding does not distinguish crops.
        in_chans: channels of the images.
        drop_path: stochastic depth rate of the last block, linear from 0 at the first.

    Raises:
        ValueError: for tables without four entries, windows below 1 token, or a width not divisible by the heads.

    Source: facts of NVlabs/GCVit@8e1941f (not its code, which has another licence). The authors' training applies
    weight decay to the bias tables too: the keyword that excludes them is never used.
    """

    attention_kinds = ("window", "global")
    map_norm = 1e-5
    task_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "detect": {"window_size": (24, 24, 24, 24)},
        "segment": {"window_size": (24, 24, 24, 24)},
    }

    def __init__(
        self,
        *,
        dim: int = 64,
        depths: Sequence[int] = (3, 4, 19, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        image_size: int | tuple[int, int] = 224,
        window_size: Sequence[int] | None = None,
        query_pooling: Literal["keep", "pool"] | None = None,
        mask_padding: bool = False,
        in_chans: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(in_chans)
        sides = tuple(_windows_for(image_size) if window_size is None else window_size)
        _check_stages(depths=depths, num_heads=num_heads, window_size=sides)
        if query_pooling is None:
            query_pooling = "keep" if sides[2] > sides[3] else "pool"
        if query_pooling not in ("keep", "pool"):
            raise ValueError(f"query_pooling is 'keep', 'pool' or None; got {query_pooling!r}.")
        num_pools = (3, 2, 0 if query_pooling == "keep" else 1, 0)
        widths = [dim * 2**i for i in range(STAGES)]

        self.window_size = sides
        self.channels, self.strides, self.embed_dim = tuple(widths), (4, 8, 16, 32), widths[-1]
        self.patch_embed = PatchEmbed(in_chans, dim)
        self.levels = nn.ModuleList()
        rates = iter(linear_rates(drop_path, sum(depths)))
        for i, (width, heads, side) in enumerate(zip(widths, num_heads, sides, strict=True)):
            kinds = [(LocalAttention, GlobalAttention)[j % 2] for j in range(depths[i])]
            blocks = [
                Block(
                    kind(width, heads, side),
                    width,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop_path=next(rates),
                    mask_padding=mask_padding,
                )
                for kind in kinds
            ]
            query = GlobalQuery(width, heads, side, num_convs=QUERY_CONVS[i], num_pools=num_pools[i])
            if GlobalAttention not in kinds:  # a stage of one block: its global queries are unused
                query.requires_grad_(False)
            downsample = Downsample(width, 2 * width) if i < STAGES - 1 else None
            self.levels.append(Level(query, blocks, downsample, side))
        self.norm = nn.LayerNorm(self.embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: normal with standard deviation 0.02 in linear layers, PyTorch's elsewhere."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("pointwise"):  # a 1 x 1 convolution
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stages(self) -> list[list[nn.Module]]:
        *levels, last = self.levels
        return [[self.patch_embed], *([level] for level in levels), [last, self.norm]]

    def centre(self, stride: int) -> float:
        return 0.0

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return [x.permute(0, 3, 1, 2) for x in self._levels(images)]

    def forward_features(self, images: Tensor) -> Tensor:
        return self.norm(self._levels(images)[-1]).flatten(1, 2)  # (B, N, C)

    def pool(self, features: Tensor) -> Tensor:
        return features.mean(dim=1)

    def _attention(self, images: Tensor, kinds: frozenset[AttentionKind]) -> Iterator[AttentionMap]:
        """Attention weights within windows: of local queries in even blocks, of global queries in odd ones."""
        self.check(images)
        x = self.run(self.patch_embed, images)
        for i, level in enumerate(cast(Iterable[Level], self.levels)):
            grid, query, _ = level.begin(x, self.run)
            for j, block in enumerate(cast(Iterable[Block], level.blocks)):
                kind: AttentionKind = "window" if isinstance(block.attn, LocalAttention) else "global"
                if kind in kinds:
                    normed = block.norm1(x.flatten(1, 2)).unflatten(1, grid)
                    weights, seen, counts = block.window_weights(normed, query)
                    place = grid, self.strides[i]  # the first token lies on the first pixel
                    name = f"levels.{i}.blocks.{j}.attn"
                    yield AttentionMap(kind, name, weights, seen, *place, windows=counts)
                x = self.run(block, x, query, "map")
            if level.downsample is not None:
                x = self.run(level.downsample, x)

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Images -> the output of each stage (B, H, W, C), before downsampling."""
        self.check(images)
        x = self.run(self.patch_embed, images)
        maps = []
        for level in cast(Iterable[Level], self.levels):
            x = level(x, self.run)
            maps.append(x)
            if level.downsample is not None:
                x = self.run(level.downsample, x)
        return maps


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of a map (B, H, W, C); the permuted view is channels-last in PyTorch, without a copy."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _over_tokens(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm over the channels of a channels-last map (B, H, W, C)."""
    return recomputable_norm(norm, x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


def _per_window(query: Tensor, num_windows: int) -> Tensor:
    """Queries (B, heads, N, D) -> repeated for each window of an image (B * nW, heads, N, D).

    No copy for one window per image, or one image. A dynamic-shape program must not compare sizes, so there it is a
    gather.
    """
    if not isinstance(num_windows, int):
        window = torch.arange(query.shape[0] * num_windows, device=query.device)
        return query.index_select(0, window // num_windows)
    return query[:, None].expand(-1, num_windows, -1, -1, -1).flatten(0, 1)


def _of_images(query: Tensor, batch: int, draw: Draw) -> Tensor:
    """Queries of the windows of all images (B * nW, heads, N, D) -> of the images drawn."""
    if draw.rows is None:
        return query

    def chosen(query: Tensor) -> Tensor:
        return draw.of(query.unflatten(0, (batch, -1))).flatten(0, 1)

    return recomputable(chosen(query), chosen, query)


def _masked(bias: Tensor, hidden: Tensor | None) -> Tensor:
    """A bias (heads, N, N), or with -inf at masked keys (B * nW, N) one per window (B * nW, heads, N, N)."""
    return bias if hidden is None else bias.masked_fill(hidden[:, None, None], -math.inf)


def _constant(dim: int, value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((dim,), value))


def _windows_for(image_size: int | tuple[int, int]) -> tuple[int, ...]:
    """(7, 7, 14, 7) at 224 pixels, (12, 12, 24, 12) at 384, (16, 16, 32, 16) at 512."""
    side = image_size if isinstance(image_size, int) else min(image_size)
    return tuple(-(-side // stride) for stride in (32, 32, 16, 32))


def _check_stages(**tables: Sequence[int]) -> None:
    """Raises: ValueError unless each table has one positive integer per stage."""
    for name, table in tables.items():
        if len(table) != STAGES or any(not isinstance(n, int) or n < 1 for n in table):
            raise ValueError(
                f"{name} is {STAGES} whole numbers from 1 up, one per stage; got {tuple(table)}."
            )


_large = partial(
    GCViT, dim=192, depths=(3, 4, 19, 5), num_heads=(6, 12, 24, 48), mlp_ratio=2.0, layer_scale=1e-5
)
# fmt: off
VARIANTS = {  # NVlabs/GCVit@8e1941f, one factory each
    "gcvit_xxtiny":    partial(GCViT, dim=64,  depths=(2, 2, 6, 2),  num_heads=(2, 4, 8, 16)),
    "gcvit_xtiny":     partial(GCViT, dim=64,  depths=(3, 4, 6, 5),  num_heads=(2, 4, 8, 16)),
    "gcvit_tiny":      partial(GCViT, dim=64,  depths=(3, 4, 19, 5), num_heads=(2, 4, 8, 16)),
    "gcvit_tiny2":     partial(GCViT, dim=64,  depths=(3, 4, 29, 5), num_heads=(2, 4, 8, 16)),
    "gcvit_small":     partial(GCViT, dim=96,  depths=(3, 4, 19, 5), num_heads=(3, 6, 12, 24),
                               mlp_ratio=2.0, layer_scale=1e-5),
    "gcvit_small2":    partial(GCViT, dim=96,  depths=(3, 4, 23, 5), num_heads=(3, 6, 12, 24),
                               layer_scale=1e-5),
    "gcvit_base":      partial(GCViT, dim=128, depths=(3, 4, 19, 5), num_heads=(4, 8, 16, 32),
                               mlp_ratio=2.0, layer_scale=1e-5),
    "gcvit_large":     _large,
    "gcvit_large_384": partial(_large, image_size=384),
    "gcvit_large_512": partial(_large, image_size=512),
}
# fmt: on
ALIASES = {
    "gc_vit_xxtiny": "gcvit_xxtiny",
    "gc_vit_xtiny": "gcvit_xtiny",
    "gc_vit_tiny": "gcvit_tiny",
    "gc_vit_tiny2": "gcvit_tiny2",
    "gc_vit_small": "gcvit_small",
    "gc_vit_small2": "gcvit_small2",
    "gc_vit_base": "gcvit_base",
    "gc_vit_large": "gcvit_large",
    "gc_vit_large_224_21k": "gcvit_large",
    "gc_vit_large_384_21k": "gcvit_large_384",
    "gc_vit_large_512_21k": "gcvit_large_512",
}
