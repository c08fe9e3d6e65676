"""XCiT: Cross-Covariance Image Transformers (El-Nouby et al. 2021, arXiv:2106.09681).

Cross-covariance attention mixes channels instead of tokens, so its cost is linear in the number of patches. One file,
as for every family; the options of the paper's ablations are included.

Shapes: B batch, H W token grid, N = H * W patches, C width, D = C // heads.
Source of every number: facebookresearch/xcit@82f5291 xcit.py.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.backbones.base import Backbone
from tetravit.kernels import gram_attention
from tetravit.layers.batch_norm import BatchNorm
from tetravit.layers.choices import check_choice, check_flags
from tetravit.layers.class_attention import ClassAttention
from tetravit.layers.drop_path import Draw, DropPath
from tetravit.layers.heads import to_heads
from tetravit.layers.init import trunc_normal_
from tetravit.layers.mlp import Mlp, add_mlp
from tetravit.layers.plain import can_use_fused, is_plain_module, is_plain_tree, is_transformed
from tetravit.layers.position import FourierPosition
from tetravit.layers.residual import add_linear, drawn, linear
from tetravit.layers.selective_recompute import recomputable, recomputable_norm, selective_recompute
from tetravit.layers.vit import PatchEmbed
from tetravit.structures import AttentionKind, AttentionMap

Stem = Literal["conv", "linear"]
Temperature = Literal["learned", "fixed"]
OUT_BLOCKS = {
    12: (3, 5, 7, 11),
    24: (7, 11, 15, 23),
}  # depth: indices of the blocks whose outputs are feature maps


class ConvStem(nn.Sequential):
    """Patch embedding: images -> patches (B, C, H, W) by 3 x 3 convolutions of stride 2, the width doubling to C."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        if patch_size not in (8, 16):
            raise ValueError(f"patch_size of XCiT is 8 or 16, or any with stem='linear'; got {patch_size!r}.")
        steps = {8: 3, 16: 4}[patch_size]
        widths = [in_chans, *(dim // 2**i for i in reversed(range(steps)))]
        layers: list[nn.Module] = []
        for i in range(steps):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, BatchNorm(widths[i + 1])), nn.GELU()]
        super().__init__(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        x = images
        with selective_recompute(images):
            for layer in self:
                y = layer(x)
                x = recomputable(y, F.gelu, x) if type(layer) is nn.GELU and is_plain_module(layer) else y
        return x


class CrossCovarianceAttention(nn.Module):
    """Cross-covariance attention: each head mixes its D channels by a D x D map (Sec. 3.2).

    l2_norm: normalize queries and keys to unit length over the tokens. temperature: "fixed": 1, not trained. many:
    use the Gram form, which has fewer operations for many tokens; None: by the number of tokens. A captured graph
    holds for any number, so it has the plain form unless `many` is set.
    """

    many: bool | None = None

    def __init__(
        self, dim: int, num_heads: int, *, l2_norm: bool = True, temperature: Temperature = "learned"
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}.")
        self.num_heads, self.l2_norm = num_heads, l2_norm
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1), requires_grad=temperature == "learned")
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normed patches (B, N, C) -> (B, N, C)."""
        return self.proj(self.attend(x))

    def add_to(
        self, x: Tensor, normed: Tensor, drop_path: DropPath, gamma: Tensor, draw: Draw | None = None
    ) -> Tensor:
        """x + drop_path(gamma * attention(normed)), in the form that takes fewer operations.

        draw: `normed` are these samples alone; None: all.
        """
        if (drop_path.active and draw is None) or not self._takes_gram(normed, drop_path):
            return add_linear(x, self.proj, self.attend(normed), drop_path, gamma, draw)
        matrix, shift = gram_attention.gram_projection(
            normed,
            (self.qkv.weight, self.qkv.bias),
            self.temperature,
            (gamma[:, None] * self.proj.weight, gamma * self.proj.bias),
        )
        if draw is None:
            return torch.baddbmm(x + shift, normed, matrix)
        return draw.add(x, torch.baddbmm(shift, normed, matrix))

    def _takes_gram(self, normed: Tensor, *others: nn.Module) -> bool:
        """Whether to use the Gram form: as set by `many`, or if it is known to be faster."""
        if not self.l2_norm:
            return False
        if self.many is not None:
            return self.many and is_plain_module(self.qkv, self.proj, *others)
        able = can_use_fused(normed, self.qkv, self.proj, *others)
        return able and normed.shape[1] >= gram_attention.LEAST * normed.shape[2]

    def attend(self, x: Tensor) -> Tensor:
        """Normed patches (B, N, C) -> (B, N, C), before the output projection.

        Queries and keys have unit length over the tokens. In float32 the lengths divide their D x D product, which
        takes fewer passes. In 16 bits sums over tokens could overflow, so there the lengths divide queries and keys.
        """
        q, k, v = self._heads(x)

        def attended(v: Tensor, weights: Tensor) -> Tensor:
            return (v @ weights.mT).transpose(1, 2).flatten(2)  # (B, N, C)

        weights = self._weights(q, k)
        return recomputable(attended(v, weights), attended, v, weights)

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights between channels (B, heads, D, D) for normed patches (B, N, C), rows for queries."""
        if self._takes_gram(x):
            return gram_attention.gram_weights(x, (self.qkv.weight, self.qkv.bias), self.temperature)
        q, k, _ = self._heads(x)
        return self._weights(q, k)

    def cosines(self, x: Tensor) -> Tensor:
        """Cosine similarities between channels (B, heads, D, D), before temperature and softmax, for normed patches.

        Without `l2_norm` they are not used for the weights.
        """
        q, k, _ = self._heads(x)
        return F.normalize(q.float(), dim=2).mT @ F.normalize(k.float(), dim=2)

    def leverage(self, x: Tensor, of: Literal["queries", "keys"] = "queries") -> Tensor:
        """Weight of each patch in the cosines (B, heads, N), for normed patches (B, N, C); sums to 1 over N.

        The mean over the channels of the squared entries, which have unit length over the patches.
        """
        q, k, _ = self._heads(x)
        return F.normalize((q if of == "queries" else k).float(), dim=2).square().mean(dim=-1)

    def written(self, x: Tensor) -> Tensor:
        """Norm of the output of each head at each patch (B, heads, N), for normed patches (B, N, C)."""
        parts = self.attend(x).unflatten(2, (self.num_heads, -1))  # (B, N, heads, D)
        weight = self.proj.weight.unflatten(1, (self.num_heads, -1))  # (C, heads, D)
        return torch.einsum("bnhd,chd->bhnc", parts, weight).norm(dim=-1)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, heads, N, D)."""
        if torch.compiler.is_exporting():
            return to_heads(x, self.qkv, 3, self.num_heads)
        packed = linear(self.qkv, x).unflatten(2, (3, self.num_heads, -1))
        return packed.permute(2, 0, 3, 1, 4).contiguous().unbind()

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scale = self.temperature
        if not self.l2_norm:
            return (q.float().mT @ k.float() * scale).softmax(dim=-1).to(q.dtype)  # sums may overflow 16 bits
        if q.dtype.itemsize < 4:
            q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
        else:
            q_length, k_length = (torch.linalg.vector_norm(y, dim=2).clamp(min=1e-12) for y in (q, k))
            scale = scale / (q_length[:, :, :, None] * k_length[:, :, None])
        return (q.mT @ k * scale).softmax(dim=-1)  # (B, heads, D, D)


class LocalPatchInteraction(nn.Module):
    """Local patch interaction: two depthwise 3 x 3 convolutions (Sec. 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = BatchNorm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.conv2(self._near(x, grid)).flatten(2).mT  # (B, N, C)

    def scaled(self, x: Tensor, grid: tuple[int, int], gamma: Tensor) -> Tensor:
        """gamma * forward(x) for factors (C,): of the last weights rather than of all patches, which are not kept."""
        weight, bias = self.conv2.weight, self.conv2.bias
        assert bias is not None
        weight, bias = gamma[:, None, None, None] * weight, gamma * bias
        return F.conv2d(self._near(x, grid), weight, bias, padding=1, groups=len(gamma)).flatten(2).mT

    def _near(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """All but the last convolution: patches (B, N, C) -> (B, C, H, W)."""
        x = x.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, C, H, W), a channels-last view of the tokens
        x = self.conv1(x)
        return self.norm(recomputable(F.gelu(x), F.gelu, x))


class Block(nn.Module):
    """A block: cross-covariance attention, local patch interaction, MLP; each scaled, with a residual (Fig. 1).

    attn, local: None omits the step, with its norm and its factors.
    """

    def __init__(
        self,
        dim: int,
        attn: CrossCovarianceAttention | None,
        local: LocalPatchInteraction | None,
        layer_scale: float,
        drop_path: float,
    ) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(dim, eps=1e-6)

        def factors() -> nn.Parameter:
            return nn.Parameter(torch.full((dim,), layer_scale))

        self.norm1, self.norm2, self.norm3 = norm() if attn else None, norm(), norm() if local else None
        self.attn, self.local = attn, local
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma1, self.gamma2, self.gamma3 = (
            factors() if attn else None,
            factors(),
            factors() if local else None,
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.attn is not None:
            x = self._mix_channels(x, self.attn)
        if self.local is not None:
            x = self._mix_neighbours(x, self.local, grid)
        return add_mlp(x, self.mlp, self.norm2, self.drop_path, self.gamma2)

    def _mix_neighbours(self, x: Tensor, local: LocalPatchInteraction, grid: tuple[int, int]) -> Tensor:
        assert self.norm3 is not None
        assert self.gamma3 is not None
        normed = recomputable_norm(self.norm3, x)
        plain = type(local) is LocalPatchInteraction and can_use_fused(x, local, local.conv2, self.drop_path)
        if not plain or not torch.is_grad_enabled():
            return torch.addcmul(x, self.gamma3, self.drop_path(local(normed, grid)))
        branch, keep = local.scaled(normed, grid, self.gamma3), self.drop_path.mask(x)
        return x + branch if keep is None else torch.addcmul(x, keep, branch)

    def _mix_channels(self, x: Tensor, attn: CrossCovarianceAttention) -> Tensor:
        assert self.norm1 is not None
        assert self.gamma1 is not None
        if type(attn) is CrossCovarianceAttention and is_plain_module(attn):
            draw = drawn(x, self.drop_path, self.norm1, attn)
            normed = recomputable_norm(self.norm1, x if draw is None else draw.of(x))
            return attn.add_to(x, normed, self.drop_path, self.gamma1, draw)
        return x + self.drop_path(self.gamma1 * attn(recomputable_norm(self.norm1, x)))


class ClassBlock(nn.Module):
    """Class attention: the class token attends to itself and the patches; patches only pass the norms (Sec. 3.4).

    The released weights were trained with a residual that starts after `norm2`, and with patches added to themselves.
    Both are kept, because the logits depend on them.
    norm_patches: whether `norm2` is also applied to the patches (all models but the nano ones).
    """

    def __init__(self, dim: int, num_heads: int, layer_scale: float, *, norm_patches: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2))
        self.norm_patches = norm_patches

    def forward(self, token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, C) and patches (B, N, C) -> both, after the block."""
        normed = recomputable_norm(self.norm1, patches)
        token = self._attend(token, normed)
        patches = patches + self.gamma1 * normed
        if self.norm_patches:
            patches = recomputable_norm(self.norm2, patches)
        return token, 2 * patches

    def token(self, token: Tensor, patches: Tensor) -> Tensor:
        """The class token only, which suffices in the last block."""
        return self._attend(token, recomputable_norm(self.norm1, patches))

    def _attend(self, token: Tensor, normed: Tensor) -> Tensor:
        token = token + self.gamma1 * self.attn(self.norm1(token), normed)
        token = self.norm2(token)
        return token + self.gamma2 * self.mlp(token)


class XCiT(Backbone):
    """Identical blocks over the patches, then two class attention blocks.

    Every level has the stride of the patches; images are zero-padded to whole patches, so that a map has ceil(Hi /
    patch_size) rows. `image_size` has no effect; all backbones accept it.

    Options of ablations (Table 4):
    stem: "conv": 3 x 3 convolutions of stride 2; "linear": linear patch embedding, of any patch size.
    xca, lpi: whether blocks have cross-covariance attention, and local patch interaction.
    l2_norm: normalize queries and keys of cross-covariance attention; without it training is unstable.
    temperature: of that attention: "learned", or "fixed" at 1.

    Raises:
        ValueError: for a patch size that the stem does not support, a width not divisible by the heads or the stem,
            or an invalid option.
    """

    attention_kinds: tuple[AttentionKind, ...] = ("channel", "class")

    def __init__(
        self,
        *,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 8,
        layer_scale: float = 1.0,
        norm_patches: bool = True,
        stem: Stem = "conv",
        xca: bool = True,
        lpi: bool = True,
        l2_norm: bool = True,
        temperature: Temperature = "learned",
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path: float = 0.0,
        out_blocks: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(in_chans)
        if out_blocks is None:
            out_blocks = OUT_BLOCKS.get(depth, (depth - 1,))
        check_choice("stem", stem, get_args(Stem))
        check_choice("temperature", temperature, get_args(Temperature))
        check_flags(xca=xca, lpi=lpi, l2_norm=l2_norm)
        if not xca:
            self.attention_kinds = ("class",)
        self.stem, self.out_blocks = stem, out_blocks
        self.channels = (dim,) * len(out_blocks)
        self.strides = (patch_size,) * len(out_blocks)
        self.embed_dim, self.num_prefix = dim, 1
        if stem == "linear":
            self.patch_embed: nn.Module = PatchEmbed.of_size(in_chans, dim, patch_size)
        else:
            self.patch_embed = ConvStem(in_chans, dim, patch_size)
        self.pos_embed = FourierPosition(dim)

        def block() -> Block:
            attn = (
                CrossCovarianceAttention(dim, num_heads, l2_norm=l2_norm, temperature=temperature)
                if xca
                else None
            )
            return Block(dim, attn, LocalPatchInteraction(dim) if lpi else None, layer_scale, drop_path)

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.class_blocks = nn.ModuleList(
            ClassBlock(dim, num_heads, layer_scale, norm_patches=norm_patches) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: normal with standard deviation 0.02 in linear layers, PyTorch's elsewhere."""
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def stages(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [self.patch_embed, self.pos_embed]
        return [stem, *([block] for block in self.blocks), [*self.class_blocks, self.norm]]

    def prepare_for_export(self, height: int, width: int) -> None:
        tokens = -(-height // self.strides[0]) * -(-width // self.strides[0])
        for module in self.modules():
            if isinstance(module, CrossCovarianceAttention):
                module.many = tokens >= gram_attention.LEAST * self.embed_dim

    def centre(self, stride: int) -> float:
        return 0.0 if self.stem == "conv" else super().centre(stride)

    @property
    def cam_layer(self) -> str:
        return f"blocks.{len(self.blocks) - 1}"  # the class attention blocks follow

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        x, grid = self._embed(images)
        maps = []
        for i, block in enumerate(self.blocks):
            x = self.run(block, x, grid)
            if i in self.out_blocks:
                maps.append(x.unflatten(1, grid).permute(0, 3, 1, 2))  # (B, C, H, W)
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        token, patches = self._class_blocks(self._patches(images))
        return self.norm(torch.cat((token, patches), dim=1))  # (B, 1 + N, C)

    def pool(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        patches, last = self._patches(images), self.class_blocks[1]
        if isinstance(last, ClassBlock) and is_plain_tree(last, self.norm):
            with selective_recompute(patches):
                token, patches = self.class_blocks[0](self._class_token(images), patches)
                token = last.token(token, patches)
            return self.norm(token[:, 0])
        token, patches = self._class_blocks(patches)
        return self.norm(torch.cat((token, patches), dim=1))[:, 0]

    def _attention(self, images: Tensor, kinds: frozenset[AttentionKind]) -> Iterator[AttentionMap]:
        """Cross-covariance attention between channels in each block; then class attention in both class blocks."""
        patches, grid = self._embed(images)
        for i, block in enumerate(cast(Iterable[Block], self.blocks)):
            if "channel" in kinds and block.attn is not None:
                assert block.norm1 is not None
                weights = block.attn.attention(block.norm1(patches)).float()
                factors = block.attn.temperature.flatten()
                seen = torch.ones_like(weights[..., 0])
                yield AttentionMap("channel", f"blocks.{i}.attn", weights, seen, temperature=factors)
            patches = self.run(block, patches, grid)
        if "class" not in kinds:
            return
        token = self._class_token(patches)
        for i, last in enumerate(cast(Iterable[ClassBlock], self.class_blocks)):
            weights = last.attn.attention(last.norm1(token), last.norm1(patches)).float()[..., 1:]
            name, stride, seen = f"class_blocks.{i}.attn", self.strides[0], weights.sum(-1)
            centre, places = self.centre(stride), weights.unflatten(2, grid)
            yield AttentionMap("class", name, places, seen, grid, stride, centre)
            token, patches = last(token, patches)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images -> patches with position encodings (B, N, C), and the grid."""
        self.check(images)
        if not is_transformed():  # vmap does not support a copy in that memory format
            images = images.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(images)  # (B, C, H, W)
        grid = (x.shape[2], x.shape[3])
        return x.flatten(2).mT + self.pos_embed(grid), grid

    def _patches(self, images: Tensor) -> Tensor:
        x, grid = self._embed(images)
        for block in self.blocks:
            x = self.run(block, x, grid)
        return x

    def _class_blocks(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, C) -> the class token (B, 1, C) and the patches after both class blocks."""
        token = self._class_token(patches)
        for block in self.class_blocks:
            with selective_recompute(patches):
                token, patches = block(token, patches)
        return token, patches

    def _class_token(self, batch: Tensor) -> Tensor:
        return self.cls_token.expand(batch.shape[0], -1, -1)


# fmt: off
VARIANTS = {  # facebookresearch/xcit@82f5291 xcit.py
    "xcit_nano_12_p16":   partial(XCiT, patch_size=16, dim=128, depth=12, num_heads=4,  norm_patches=False),
    "xcit_nano_12_p8":    partial(XCiT, patch_size=8,  dim=128, depth=12, num_heads=4,  norm_patches=False),
    "xcit_tiny_12_p16":   partial(XCiT, patch_size=16, dim=192, depth=12, num_heads=4),
    "xcit_tiny_12_p8":    partial(XCiT, patch_size=8,  dim=192, depth=12, num_heads=4),
    "xcit_tiny_24_p16":   partial(XCiT, patch_size=16, dim=192, depth=24, num_heads=4,  layer_scale=1e-5),
    "xcit_tiny_24_p8":    partial(XCiT, patch_size=8,  dim=192, depth=24, num_heads=4,  layer_scale=1e-5),
    "xcit_small_12_p16":  partial(XCiT, patch_size=16, dim=384, depth=12, num_heads=8),
    "xcit_small_12_p8":   partial(XCiT, patch_size=8,  dim=384, depth=12, num_heads=8),
    "xcit_small_24_p16":  partial(XCiT, patch_size=16, dim=384, depth=24, num_heads=8,  layer_scale=1e-5),
    "xcit_small_24_p8":   partial(XCiT, patch_size=8,  dim=384, depth=24, num_heads=8,  layer_scale=1e-5),
    "xcit_medium_24_p16": partial(XCiT, patch_size=16, dim=512, depth=24, num_heads=8,  layer_scale=1e-5),
    "xcit_medium_24_p8":  partial(XCiT, patch_size=8,  dim=512, depth=24, num_heads=8,  layer_scale=1e-5),
    "xcit_large_24_p16":  partial(XCiT, patch_size=16, dim=768, depth=24, num_heads=16, layer_scale=1e-5),
    "xcit_large_24_p8":   partial(XCiT, patch_size=8,  dim=768, depth=24, num_heads=16, layer_scale=1e-5),
}
# fmt: on
ALIASES: dict[str, str] = {}
