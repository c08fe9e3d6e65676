"""ConViT: vision transformers with soft convolutional inductive biases (d'Ascoli et al. 2021, arXiv:2103.10697).

Gated positional self-attention is initialised as a convolution; each head learns how much to use position. One file,
as for every family; the options of the paper's ablations are included.

Shapes: B batch, H W token grid, N = H * W patches (+ 1 with the class token), C width, D = C // heads.
Source of every number: facebookresearch/convit@0a9340a convit.py and models.py.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.backbones.base import Backbone
from tetravit.layers.cache import SizeCache
from tetravit.layers.choices import check_choice, check_flags
from tetravit.layers.drop_path import DropPath, linear_rates
from tetravit.layers.heads import to_heads
from tetravit.layers.init import trunc_normal_
from tetravit.layers.mlp import Mlp, add_mlp
from tetravit.layers.plain import is_plain_module, is_plain_tree
from tetravit.layers.residual import add_linear, drawn
from tetravit.layers.selective_recompute import recomputable, recomputable_norm
from tetravit.layers.vit import (
    OUT_BLOCKS,
    Block,
    ClassToken,
    Grid,
    LearnedPosition,
    PatchEmbed,
    attention_records,
)
from tetravit.structures import AttentionKind, AttentionMap, TokenAttention

Gate = Literal["learned", "frozen", "psa"]


def offsets(grid: Grid, device: torch.device | None = None, *, rows: slice = slice(None)) -> Tensor:
    """Offsets from each patch (row) to each patch (column): dx, dy and dx^2 + dy^2 in patches (N, N, 3), float32.

    rows: query patches; default: all.
    """
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    y, x = y[:, None].expand(grid).flatten(), x[None].expand(grid).flatten()  # (N,)
    dy, dx = y[None] - y[rows, None], x[None] - x[rows, None]
    return torch.stack((dx, dy, dx**2 + dy**2), dim=-1)


class PositionalAttention(nn.Module):
    """Positional self-attention without a gate: content and position scores are added before one softmax (PSA, eq.
    4).

    The positional score of a head for a patch at (dx, dy) from the query: a dx + b dy + c (dx^2 + dy^2). Content
    scores are divided by the square root of D, as usual.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}.")
        self.num_heads = num_heads
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(3, num_heads)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Normed patches (B, N, C) -> (B, N, C)."""
        return self.proj(self.attend(x, grid))

    def attend(self, x: Tensor, grid: Grid) -> Tensor:
        """Attention without the output projection."""
        q, k = self._queries_keys(x)
        v = self.v(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D)
        scores = self.scores(grid).to(q.dtype)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=scores).transpose(1, 2).flatten(2)

    def init_local(self, strength: float) -> None:
        """Initialise as a convolution: each head attends to one offset of a sqrt(heads)-wide kernel.

        Heads beyond the largest square keep random positions. strength: alpha, the sharpness (Sec. 3, eq. 5).
        """
        nn.init.eye_(self.v.weight)
        side = math.isqrt(self.num_heads)
        place = torch.arange(side, dtype=torch.float32, device=self.pos_proj.weight.device) - (side - 1) / 2
        centre = torch.cartesian_prod(place, place)  # (side * side, 2): x, y of each head
        with torch.no_grad():
            self.pos_proj.weight[: side * side, :2] = 2 * centre
            self.pos_proj.weight[: side * side, 2] = -1
            self.pos_proj.weight *= strength

    def attention(self, x: Tensor, grid: Grid) -> Tensor:
        """Attention weights (B, heads, N, N), rows for queries, for normed patches (B, N, C)."""
        return self.rows(x, grid, 0, x.shape[1])

    def rows(self, x: Tensor, grid: Grid, start: int, stop: int) -> Tensor:
        """Attention weights of the queries `start` to `stop` (B, heads, stop - start, N)."""
        q, k = self._queries_keys(x)
        scores = self.scores(grid, slice(start, stop))
        return (q[:, :, start:stop] @ k.mT * q.shape[-1] ** -0.5 + scores).softmax(dim=-1)

    def records(
        self, x: Tensor, grid: Grid, kinds: frozenset[AttentionKind], layer: str, stride: int
    ) -> Iterator[AttentionMap]:
        """Attention maps of the layer for its input, normed patches (B, N, C): kind "self", patches only."""
        if "self" in kinds:
            weights = self.attention(x, grid).float()
            yield AttentionMap("self", layer, weights, weights.sum(dim=-1), grid, stride, (stride - 1) / 2)

    def scores(self, grid: Grid, rows: slice = slice(None)) -> Tensor:
        """Positional scores before the softmax (heads, N, N), rows for queries; optionally of some `rows`.

        Without autocast: from 16 patches on, squared distances are not exact in 16 bits.
        """
        like = next(self.parameters(), torch.empty(0))  # a quantised layer has no parameters
        autocast = torch.autocast(like.device.type, enabled=False) if not like.is_meta else nullcontext()
        with autocast:
            return self.pos_proj(offsets(grid, like.device, rows=rows).to(like.dtype)).permute(2, 0, 1)

    def _queries_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, (B, heads, N, D) each."""
        q, k = to_heads(x, self.qk, 2, self.num_heads)
        return q, k


class GatedPositionalAttention(PositionalAttention):
    """Gated positional self-attention: each head blends content and position attention (GPSA, eq. 6 and 7).

    The positional score of a head, a dx + b dy + c (dx^2 + dy^2), is a term in dx plus a term in dy. Its softmax over
    the grid is therefore the product of one over the columns and one over the rows, and the N x N positional map is
    never computed: values are averaged along columns, then along rows. The factors do not depend on the image.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.gating_param = nn.Parameter(torch.ones(num_heads))
        self._cache = SizeCache()

    def attend(self, x: Tensor, grid: Grid) -> Tensor:
        """Attention without the output projection."""
        q, k = self._queries_keys(x)
        v = self.v(x).unflatten(2, (self.num_heads, -1))  # (B, N, heads, D)
        content = F.scaled_dot_product_attention(q, k, v.transpose(1, 2)).transpose(1, 2)  # (B, N, heads, D)
        # The authors divide the blended rows by their sums. Both softmaxes sum to 1, so the sums are 1 up to
        # rounding: omitting the division changes outputs by less than 1e-12 in float64 (see the tests).
        gate = self.gating_param.sigmoid()[:, None].to(content.dtype)

        def blended(content: Tensor, position: Tensor, gate: Tensor) -> Tensor:
            return torch.lerp(content, position, gate).flatten(2)

        parts = content, self._positional(v, grid), gate
        return recomputable(blended(*parts), blended, *parts)

    def gates(self) -> Tensor:
        """Gate: weight of the positional attention in each head (heads,), in (0, 1)."""
        return self.gating_param.sigmoid()

    def rows(self, x: Tensor, grid: Grid, start: int, stop: int) -> Tensor:
        part = slice(start, stop)
        return self.blend(self.content_map(x, part), self.positional_map(grid, part))

    def content_map(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Content attention (B, heads, N, N), rows for queries, for normed patches; optionally of some `rows`."""
        q, k = self._queries_keys(x)
        return (q[:, :, rows] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)

    def blend(self, content: Tensor, position: Tensor) -> Tensor:
        """Both parts weighted by the gate, (B, heads, N, N) and (heads, N, N), rows divided by their sums."""
        gate = self.gates()[:, None, None]
        attn = (1 - gate) * content + gate * position.to(content.dtype)
        return attn / attn.sum(dim=-1, keepdim=True)

    def records(
        self, x: Tensor, grid: Grid, kinds: frozenset[AttentionKind], layer: str, stride: int
    ) -> Iterator[AttentionMap]:
        """Attention maps of the layer for its input, normed patches (B, N, C)."""
        if not kinds & {"gated", "content", "position"}:
            return
        content, position = self.content_map(x), self.positional_map(grid)
        parts = {"gated": self.blend(content, position), "content": content, "position": position[None]}
        for kind, weights in cast(dict[AttentionKind, Tensor], parts).items():
            if kind in kinds:
                seen = torch.ones_like(weights[..., 0], dtype=torch.float32)  # all tokens are patches
                centre = (stride - 1) / 2
                yield AttentionMap(
                    kind, layer, weights.float(), seen, grid, stride, centre, gate=self.gates()
                )

    def positional_map(self, grid: Grid, rows: slice = slice(None)) -> Tensor:
        """Positional attention (heads, N, N), rows for queries; optionally of some `rows`."""
        return self.scores(grid, rows).softmax(dim=-1)

    def _positional(self, v: Tensor, grid: Grid) -> Tensor:
        """Values (B, N, heads, D) -> their averages by positional attention, in the same layout."""
        if not is_plain_module(self.pos_proj):
            return (self.positional_map(grid).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
        sources = (self.pos_proj.weight, self.pos_proj.bias)
        rows, columns = self._cache.get(grid, sources, lambda: self._axes(grid))
        B, _, heads, D = v.shape
        H, W = grid
        dtype = v.dtype
        if torch.compiler.is_exporting():  # a dynamic-shape graph cannot cast tables with symbolic strides
            v = v.to(rows.dtype)

        def by_rows(v: Tensor) -> Tensor:
            return v.unflatten(1, grid).permute(3, 1, 0, 4, 2).reshape(heads, H, B * D * W)

        x = recomputable(by_rows(v), by_rows, v)
        x = torch.bmm(rows.to(v.dtype), x).view(heads, H * B * D, W)
        x = torch.bmm(x, columns.mT.to(v.dtype)).view(heads, H, B, D, W)
        return x.permute(2, 1, 4, 0, 3).flatten(1, 2).to(dtype)

    def _axes(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """The two factors of the positional map: over rows (heads, H, H) and over columns (heads, W, W).

        In float32 or better: from 16 patches on, squared distances are not exact in 16 bits.
        """
        dtype = torch.promote_types(self.pos_proj.weight.dtype, torch.float32)
        dx, dy, square = self.pos_proj.weight.to(dtype)[:, :, None, None].unbind(1)  # (heads, 1, 1)
        bias = self.pos_proj.bias.to(dtype)[:, None, None]  # cancels in the softmax; kept for its gradient

        def distances(side: int) -> Tensor:
            place = torch.arange(side, device=square.device, dtype=dtype)
            return place[None] - place[:, None]  # key minus query

        y, x = distances(grid[0]), distances(grid[1])
        return (dy * y + square * y**2 + bias).softmax(dim=-1), (dx * x + square * x**2).softmax(dim=-1)


class LocalBlock(nn.Module):
    """A transformer block: attention, then MLP, each pre-norm with a residual."""

    def __init__(self, dim: int, num_heads: int, *, gate: Gate, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = (PositionalAttention if gate == "psa" else GatedPositionalAttention)(dim, num_heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        if type(self.attn) in (PositionalAttention, GatedPositionalAttention) and is_plain_module(self.attn):
            draw = drawn(x, self.drop_path, self.norm1, self.attn)
            normed = recomputable_norm(self.norm1, x if draw is None else draw.of(x))
            x = add_linear(x, self.attn.proj, self.attn.attend(normed, grid), self.drop_path, draw=draw)
        else:
            x = x + self.drop_path(self.attn(recomputable_norm(self.norm1, x), grid))
        return add_mlp(x, self.mlp, self.norm2, self.drop_path)


class ConViT(Backbone):
    """Blocks of gated positional self-attention over the patches, then plain blocks with a class token.

    Every level of `feature_maps` has the stride of the patches; images are zero-padded to whole patches, so that a
    map has ceil(Hi / patch_size) rows.

    num_gpsa: blocks with positional attention ("local_up_to_layer"); the class token is added after them.
    gate: "learned"; "frozen": fixed at 0, half position and half content (Table 3); "psa": no gate, one softmax over
        the sum of both scores (Figure 9).
    local_init: whether these blocks are initialised as convolutions; False: positions and values are random (Table
        3).
    locality_strength: alpha of that initialisation (Figure 8).
    freeze_gpsa: whether the attention of these blocks is frozen; norms and MLPs train (Table 3).
    image_size: side or (height, width) of the images for which the position embeddings are learned.

    Raises:
        ValueError: for a width not divisible by the heads, no block left for the class token, a negative
            `locality_strength`, or an invalid option.
    """

    attention_kinds: tuple[AttentionKind, ...] = ("gated", "content", "position", "self", "class")

    def __init__(
        self,
        *,
        patch_size: int = 16,
        dim: int = 432,
        depth: int = 12,
        num_heads: int = 9,
        num_gpsa: int = 10,
        gate: Gate = "learned",
        local_init: bool = True,
        locality_strength: float = 1.0,
        freeze_gpsa: bool = False,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path: float = 0.0,
        out_blocks: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(in_chans)
        if not 0 <= num_gpsa < depth:
            raise ValueError(
                f"num_gpsa is between 0 and {depth - 1}: the class token needs a block; got {num_gpsa}."
            )
        number = isinstance(locality_strength, int | float) and not isinstance(locality_strength, bool)
        if not number or not 0 <= locality_strength < math.inf:
            raise ValueError(
                "locality_strength is a number from 0 up; local_init=False starts at random; got"
                f" {locality_strength!r}."
            )
        check_choice("gate", gate, get_args(Gate))
        check_flags(local_init=local_init, freeze_gpsa=freeze_gpsa)
        self.num_gpsa, self.gate, self.freeze_gpsa = num_gpsa, gate, freeze_gpsa
        self.local_init, self.locality_strength = local_init, locality_strength
        if gate == "psa" or not num_gpsa:
            self.attention_kinds = ("self", "class")
        if out_blocks is None:
            out_blocks = OUT_BLOCKS.get(depth, (depth - 1,))
        self.out_blocks = out_blocks
        self.channels = (dim,) * len(out_blocks)
        self.strides = (patch_size,) * len(out_blocks)
        self.embed_dim, self.num_prefix = dim, 1
        self.patch_embed = PatchEmbed.of_size(in_chans, dim, patch_size)
        self.pos_embed = LearnedPosition(dim, self.patch_embed.grid(image_size))
        rates = linear_rates(drop_path, depth)
        local = (LocalBlock(dim, num_heads, gate=gate, drop_path=rate) for rate in rates[:num_gpsa])
        plain = (Block(dim, num_heads, qkv_bias=False, drop_path=rate) for rate in rates[num_gpsa:])
        self.blocks = nn.ModuleList((*local, *plain))
        self.cls_token = ClassToken(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: normal with standard deviation 0.02, then the offset of each positional
        head."""
        trunc_normal_(self.pos_embed.table, std=0.02)
        trunc_normal_(self.cls_token.token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for attn in self._positional():
            if self.local_init:
                attn.init_local(self.locality_strength)
            if self.gate == "frozen":
                assert isinstance(attn, GatedPositionalAttention)
                nn.init.zeros_(attn.gating_param).requires_grad_(False)
            if self.freeze_gpsa:
                attn.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed.table", "cls_token.token"}

    def stages(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = [[block] for block in self.blocks]
        groups[self.num_gpsa].insert(0, self.cls_token)
        return [[self.patch_embed, self.pos_embed], *groups, [self.norm]]

    @property
    def cam_layer(self) -> str:
        return f"blocks.{len(self.blocks) - 1}.norm1"  # after it, only the class token is used

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        x, grid = self._embed(images)
        maps = []
        for i in range(len(self.blocks)):
            x = self._step(i, x, grid)
            if i in self.out_blocks:
                patches = x if i < self.num_gpsa else x[:, 1:]
                maps.append(patches.unflatten(1, grid).permute(0, 3, 1, 2))  # (B, C, H, W)
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        x, grid = self._embed(images)
        for i in range(len(self.blocks)):
            x = self._step(i, x, grid)
        return self.norm(x)  # (B, 1 + N, C)

    def pool(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        x, grid = self._embed(images)
        last = len(self.blocks) - 1
        for i in range(last):
            x = self._step(i, x, grid)
        if is_plain_tree(self.blocks[last], self.norm):
            return self.norm(
                self._step(last, x, grid, num_queries=1)[:, 0]
            )  # the last block for one token only
        return self.norm(self._step(last, x, grid))[:, 0]

    def gates(self) -> Tensor:
        """Gate of each head of each gated block (num_gpsa, heads), in (0, 1); empty without gated blocks."""
        gates = [attn.gates() for attn in self._positional() if isinstance(attn, GatedPositionalAttention)]
        return torch.stack(gates) if gates else self.pos_embed.table.new_empty(0, 0)

    def token_attention(self, images: Tensor) -> Iterator[TokenAttention]:
        x, grid = self._embed(images)
        for i, block in enumerate(cast(Iterable[LocalBlock | Block], self.blocks)):
            x = self._joined(i, x)
            normed, attn, prefix = block.norm1(x), block.attn, int(i >= self.num_gpsa)
            place = (grid,) if isinstance(attn, PositionalAttention) else ()
            kind: AttentionKind = "gated" if isinstance(attn, GatedPositionalAttention) else "self"
            rows = partial(attn.rows, normed, *place)
            yield TokenAttention(kind, f"blocks.{i}.attn", grid, prefix, attn.num_heads, rows)
            x = self.run(block, x, grid) if i < self.num_gpsa else self.run(block, x)

    def _attention(self, images: Tensor, kinds: frozenset[AttentionKind]) -> Iterator[AttentionMap]:
        """Attention weights of the first blocks, gated ones with their parts; from block `num_gpsa` on the plain
        ones."""
        x, grid = self._embed(images)
        stride = self.strides[0]
        for i in range(len(self.blocks)):
            name, block = f"blocks.{i}.attn", self.blocks[i]
            if isinstance(block, LocalBlock):
                yield from block.attn.records(block.norm1(x), grid, kinds, name, stride)
            else:
                assert isinstance(block, Block)
                normed = block.norm1(self._joined(i, x))
                yield from attention_records(
                    block.attn, normed, kinds, layer=name, grid=grid, stride=stride, prefix=1
                )
            x = self._step(i, x, grid)

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Images -> patches with position embeddings (B, N, C), and the grid."""
        self.check(images)
        x = self.patch_embed(images)  # (B, C, H, W)
        grid = (x.shape[2], x.shape[3])
        return x.flatten(2).mT + self.pos_embed(grid), grid

    def _step(self, i: int, x: Tensor, grid: Grid, num_queries: int | None = None) -> Tensor:
        """Run block `i`; before the first plain block, add the class token."""
        if i < self.num_gpsa:
            return self.run(self.blocks[i], x, grid)
        given = () if num_queries is None else (num_queries,)
        return self.run(self.blocks[i], self._joined(i, x), *given)

    def _joined(self, i: int, x: Tensor) -> Tensor:
        """The input of plain block `i`; the class token is added at the first one."""
        return self.cls_token(x) if i == self.num_gpsa else x

    def _positional(self) -> list[PositionalAttention]:
        return [block.attn for block in self.blocks[: self.num_gpsa]]  # type: ignore[misc]


# fmt: off
VARIANTS = {  # facebookresearch/convit@0a9340a models.py: 48 channels a head, 64 in the plus models
    "convit_tiny":       partial(ConViT, dim=192,  num_heads=4),
    "convit_tiny_plus":  partial(ConViT, dim=256,  num_heads=4),
    "convit_small":      partial(ConViT, dim=432,  num_heads=9),
    "convit_small_plus": partial(ConViT, dim=576,  num_heads=9),
    "convit_base":       partial(ConViT, dim=768,  num_heads=16),
    "convit_base_plus":  partial(ConViT, dim=1024, num_heads=16),
}
# fmt: on
ALIASES: dict[str, str] = {}
