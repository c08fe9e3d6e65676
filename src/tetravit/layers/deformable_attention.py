"""Multi-scale deformable attention (Zhu et al. 2021, arXiv:2010.04159) in plain PyTorch.

Every query samples a few points per level instead of all tokens: offsets from its reference point, and the attention
weights of the points, are linear functions of the query.

Two exact forms of the sampling:

* `sample_by_grid`: `grid_sample` per level. Graphs (export, compile) and GPUs use it.
* `sample_by_rows`: the four neighbours of a point are rows of one table, summed by `embedding_bag`. On a CPU it takes
  a sixth of the time of `grid_sample`, and less than half in the backward pass (800 x 1088 pixels, 4 levels).
  Gradients of the table are sorted by row and summed by `embedding_bag`; those of the weights are a sampled
  dense-dense product.

Shapes: B batch, Q queries, N tokens of all levels, C width, H heads, L levels, P points per head and level,
D = C // H.
Parameters are named as in the authors' code, IDEA-Research/DINO@faa8520 models/dino/ops/modules/ms_deform_attn.py.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Shapes = Sequence[tuple[int, int]]  # (height, width) of every level

PART = 2**17  # points per chunk, to fit the cache of a core
GRADIENT_PART = 2**18  # points per chunk in the backward pass


class DeformableAttention(nn.Module):
    """Attention of queries to sampled points of several feature maps.

    Raises:
        ValueError: if the width is not divisible by the heads.
    """

    def __init__(self, dim: int, *, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the width {dim}; got {heads}.")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial offsets of head h lie on a ray of angle 2 pi h / H, 1 to P pixels away, with equal weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ray = torch.stack((angle.cos(), angle.sin()), dim=-1)
        ray = ray / ray.abs().amax(dim=-1, keepdim=True)  # (H, 2)
        steps = torch.arange(1, self.points + 1)[:, None]
        ring = (ray[:, None, None] * steps).expand(-1, self.levels, -1, -1)  # (H, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.flatten())

    def forward(
        self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> Tensor:
        """Attend to the maps around the reference points.

        Args:
            query: (B, Q, C).
            reference: (B, Q, L, 2), x y in 0..1 of each map; or (B, Q, L, 4), boxes cx cy w h.
            value: (B, N, C), the tokens of all levels, one level after another, row by row.
            shapes: (height, width) of every level.
            padding: (B, N) bool, True for padding tokens, whose values count as 0; None: no padding.

        Returns:
            (B, Q, C).
        """
        if isinstance(shapes, Tensor):
            shapes = [(int(h), int(w)) for h, w in shapes]
        value = self.value_proj(value)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        value = value.unflatten(-1, (self.heads, -1))  # (B, N, H, D)
        points = self.sampling_points(query, reference, shapes)
        weights = self.point_weights(query).flatten(-2)  # (B, Q, H, L * P)
        return self.output_proj(sample(_wide(value), points, weights, shapes).to(query.dtype))

    def point_weights(self, query: Tensor) -> Tensor:
        """Attention weights of the sampling points (B, Q, H, L, P); they sum to 1 per head."""
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1))
        return _wide(weights).softmax(dim=-1).unflatten(-1, (self.levels, self.points))

    def sampling_points(self, query: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Sampling points: (B, Q, H, L, P, 2), x y in pixels of each level, centres at integers."""
        sides = _sides(shapes, _wide(reference))[:, None]  # (L, 1, 2)
        offsets = _wide(self.sampling_offsets(query)).unflatten(-1, (self.heads, -1))  # (B, Q, H, L * P * 2)
        if reference.shape[-1] == 4:  # offsets in half box sides, divided by the number of points
            offsets = offsets * self._per_point(reference[..., None, 2:] * sides * (0.5 / self.points))
        points = self._per_point(reference[..., None, :2] * sides - 0.5) + offsets
        return points.unflatten(-1, (self.levels, self.points, 2))

    def _per_point(self, values: Tensor) -> Tensor:
        """Per-level values (B, Q, L, 1, 2) repeated for every point of a head: (B, Q, 1, L * P * 2)."""
        return values.expand(-1, -1, -1, self.points, -1).flatten(2)[:, :, None]


def sample(value: Tensor, points: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """Weighted sums of bilinear samples, zeros outside the maps, in the faster form for the device.

    Args:
        value: (B, N, H, D), float32 or float64.
        points: (B, Q, H, L, P, 2), x y in pixels of each level.
        weights: (B, Q, H, L * P).
        shapes: (height, width) of every level.

    Returns:
        (B, Q, H * D).
    """
    on_cpu = value.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu or (value.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()):
        return sample_by_rows(value, points, weights, shapes)
    return sample_by_grid(value, points, weights, shapes)


def sample_by_grid(value: Tensor, points: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """The form with `grid_sample`; arguments as in `sample`."""
    batch, _, heads, width = value.shape
    levels, num_points = points.shape[3:5]
    sides = _sides(shapes, points)
    grids = (2 * points + 1) / sides[:, None] - 1  # -1 and 1 are the borders of a map
    parts = []
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, width, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * H, Q, P, 2)
        parts.append(F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
    samples = torch.stack(parts, dim=-2).flatten(-2)  # (B * H, D, Q, L * P)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, -1, levels * num_points)
    out = (samples * weights).sum(dim=-1)  # (B * H, D, Q)
    return out.view(batch, heads * width, -1).transpose(1, 2)


def sample_by_rows(value: Tensor, points: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """The form with `embedding_bag`; arguments as in `sample`."""
    return _RowSampling.apply(value, points, weights, tuple(shapes))


class _RowSampling(torch.autograd.Function):
    """In chunks of queries. Neighbours and their weights are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, points: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        ctx.save_for_backward(value, points, weights)
        ctx.shapes = shapes
        grid, table = _Grid(shapes, points), _bordered(value, shapes)
        points, weights = points.flatten(0, 1), weights.flatten(0, 1)  # (B * Q, H, ...)
        out = value.new_empty(len(points), value.shape[2] * value.shape[3])
        parts = _Parts(points, PART)
        for part in parts:
            rows, shares, _ = grid.neighbours(points[part], weights[part], part, parts)
            sums = F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
            out[part] = sums.view(-1, out.shape[1])
        return out.view(len(value), -1, out.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        value, points, weights = ctx.saved_tensors
        grid, table = _Grid(ctx.shapes, points), _bordered(value, ctx.shapes)
        of_table = torch.zeros_like(table) if ctx.needs_input_grad[0] else None
        of_points, of_weights = torch.empty_like(points), torch.empty_like(weights)
        grad = grad.reshape(-1, value.shape[2], value.shape[3])  # (B * Q, H, D)
        points, weights = points.flatten(0, 1), weights.flatten(0, 1)
        parts = _Parts(points, GRADIENT_PART)
        for part in parts:
            g = grad[part].flatten(0, 1)  # (n * H, D)
            rows, shares, fraction = grid.neighbours(points[part], weights[part], part, parts)
            products = _products(rows, table, g).view(*weights[part].shape[:2], 4, -1)  # (n, H, 4, L * P)
            of_point, of_weight = _of_shares(products, fraction, weights[part])
            of_points.view_as(points)[part] = of_point.view_as(points[part]) * grid.inside(points[part])
            of_weights.view_as(weights)[part] = of_weight
            if of_table is not None:
                of_table += _scattered(rows, shares, g, len(table))
        of_value = None if of_table is None else _inside(of_table, value, ctx.shapes)
        return of_value, of_points, of_weights, None


class _Parts:
    """Chunks of queries with about `size` points (n, H, L, P, 2), a single chunk on a GPU; and their buffers.

    rows, shares: (n, H, 4, L * P), reused for all chunks: fresh memory per chunk takes longer than computing
    the values.
    """

    def __init__(self, points: Tensor, size: int) -> None:
        self.count, heads, levels, per_level = points.shape[:4]
        wanted = self.count if points.is_cuda else size // (heads * levels * per_level)
        self.step = max(1, min(self.count, wanted))
        shape = (self.step, heads, 4, levels * per_level)
        self.rows = points.new_empty(shape, dtype=torch.int32)
        self.shares = points.new_empty(shape)

    def __iter__(self) -> Iterator[slice]:
        return (slice(start, start + self.step) for start in range(0, self.count, self.step))


class _Grid:
    """Maps with a border of zeros one pixel wide, as rows of one table: one row per pixel and head."""

    def __init__(self, shapes: Shapes, like: Tensor) -> None:
        heads, levels, points = like.shape[2:5]
        width = like.new_tensor([w + 2 for _, w in shapes])[:, None]
        areas = [(h + 2) * (w + 2) for h, w in shapes]
        start = like.new_tensor([sum(areas[:i]) for i in range(levels)])[:, None] + width + 1
        self.limit = _sides(shapes, like)[:, None].expand(heads, levels, points, 2).flatten()
        self.least = like.new_tensor(-1.0)
        self.width = width.expand(heads, levels, points).flatten()
        self.start = start.expand(heads, levels, points).flatten()
        self.below = (self.width.int() * heads).view(heads, -1)
        self.head = torch.arange(heads, dtype=torch.int32, device=like.device)[:, None]
        first = torch.arange(len(like), dtype=torch.int32, device=like.device) * (sum(areas) * heads)
        self.image = first.repeat_interleave(like.shape[1])[:, None, None]  # (B * Q, 1, 1)

    def neighbours(
        self, points: Tensor, weights: Tensor, part: slice, buffers: _Parts
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points (n, H, L, P, 2), weights (n, H, L * P) -> rows of the table and their weights, (n * H, 4 * L * P).

        part: indices of the B * Q queries. Points outside are moved to the border, whose rows are 0. The third
        result: how far a point is right of and below its upper left neighbour, (n, H, L * P, 2). The first two lie in
        the buffers.
        """
        n, heads = points.shape[:2]
        points = points.reshape(n, -1).clamp(self.least, self.limit)
        corner = torch.minimum(points.floor(), self.limit - 1)
        fraction = points.sub_(corner).view(n, heads, -1, 2)
        x, y = corner.view(n, -1, 2).unbind(-1)
        first = torch.addcmul(x + self.start, y, self.width)  # exact: integers below 2 ** 24
        first = first.nan_to_num_(nan=0.0).int().view(n, heads, -1).mul_(heads)
        first += self.head + self.image[part]
        rows, shares = buffers.rows[:n], buffers.shares[:n]
        upper_left, upper_right, lower_left, lower_right = rows.unbind(2)
        upper_left.copy_(first)
        torch.add(first, heads, out=upper_right)
        torch.add(first, self.below, out=lower_left)
        torch.add(lower_left, heads, out=lower_right)
        dx, dy = fraction.unbind(-1)
        lower = weights * dy
        upper = weights - lower
        upper_left, upper_right, lower_left, lower_right = shares.unbind(2)
        torch.mul(upper, dx, out=upper_right)
        torch.sub(upper, upper_right, out=upper_left)
        torch.mul(lower, dx, out=lower_right)
        torch.sub(lower, lower_right, out=lower_left)
        return rows.view(n * heads, -1), shares.view(n * heads, -1), fraction

    def inside(self, points: Tensor) -> Tensor:
        """1 where a coordinate lies within the map and its border, else 0: shaped as the points (n, H, L, P, 2)."""
        flat = points.reshape(len(points), -1)
        return ((flat >= self.least) & (flat <= self.limit)).to(points.dtype).view_as(points)


def _of_shares(products: Tensor, fraction: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of points (n, H, L * P, 2) and weights (n, H, L * P) from those of the shares (n, H, 4, L * P)."""
    upper_left, upper_right, lower_left, lower_right = products.unbind(2)
    dx, dy = fraction.unbind(-1)
    along_upper, along_lower = upper_right - upper_left, lower_right - lower_left
    upper = torch.addcmul(upper_left, along_upper, dx)
    down = torch.addcmul(lower_left, along_lower, dx) - upper
    of_x = weights * torch.addcmul(along_upper, along_lower - along_upper, dy)
    return torch.stack((of_x, weights * down), dim=-1), torch.addcmul(upper, down, dy)


def _bordered(value: Tensor, shapes: Shapes) -> Tensor:
    """(B, N, H, D) -> a table (rows, D) of maps with a border of zeros, image after image."""
    batch, _, heads, width = value.shape
    areas = [(h + 2) * (w + 2) for h, w in shapes]
    table = value.new_zeros(batch, sum(areas), heads, width)
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, tokens, (h, w) in zip(table.split(areas, dim=1), levels, shapes, strict=True):
        level.unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1] = tokens.unflatten(1, (h, w))
    return table.view(-1, width)


def _products(rows: Tensor, table: Tensor, g: Tensor) -> Tensor:
    """Inner products of table rows with rows of `g`: (n, K) int32, (R, D), (n, D) -> (n, K)."""
    if rows.is_cuda:
        return torch.bmm(table[rows.long()], g[:, :, None]).squeeze(2)
    count, width = rows.shape
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        ends = torch.arange(0, rows.numel() + 1, width, dtype=torch.int32)
        where = torch.sparse_csr_tensor(
            ends, rows.flatten(), g.new_zeros(rows.numel()), (count, len(table)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(where, g, table.t(), beta=0.0).values().view(count, width)


def _scattered(rows: Tensor, shares: Tensor, g: Tensor, size: int) -> Tensor:
    """Gradient of a table with `size` rows: sums of weights (n, K) times rows of `g` (n, D): (size, D)."""
    if rows.is_cuda:  # deterministic on CUDA
        of_rows = (shares[..., None] * g[:, None]).flatten(0, 1)
        return g.new_zeros(size, g.shape[1]).index_add_(0, rows.flatten(), of_rows)
    rows, order = rows.flatten().sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(size, dtype=torch.int32))
    source = order.div(shares.shape[1], rounding_mode="floor")
    return F.embedding_bag(source, g, starts, mode="sum", per_sample_weights=shares.flatten()[order])


def _inside(table: Tensor, like: Tensor, shapes: Shapes) -> Tensor:
    """The inverse of `_bordered`: a table (rows, D) without the borders, shaped like `like` (B, N, H, D)."""
    heads, width = like.shape[2:]
    parts = table.view(len(like), -1, heads, width).split([(h + 2) * (w + 2) for h, w in shapes], dim=1)
    inner = [
        part.unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1].flatten(1, 2)
        for part, (h, w) in zip(parts, shapes, strict=True)
    ]
    return torch.cat(inner, dim=1)


def _sides(shapes: Shapes, like: Tensor) -> Tensor:
    """Width and height of every level (L, 2), in the dtype of `like`."""
    one = like.new_ones(())  # multiplied by a side, which may be symbolic
    return torch.stack([torch.stack((one * w, one * h)) for h, w in shapes])


def _wide(x: Tensor) -> Tensor:
    """At least float32: in half precision, sampling points would be rounded to pixels."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
