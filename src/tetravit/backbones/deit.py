"""DeiT: data-efficient image transformers (Touvron et al. 2021, arXiv:2012.12877), the baseline of comparisons.

The plain vision transformer: patch embedding, learned position embeddings, class token, identical blocks. A distilled
model also has a distillation token, trained with a teacher.

Shapes: B batch, H W token grid, N = H * W patches, T = 1 class token (2 with the distillation token), C width.
Source of every number: facebookresearch/deit@7e160fe models.py.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast

from torch import Tensor, nn

from tetravit.backbones.base import Backbone
from tetravit.layers.drop_path import linear_rates
from tetravit.layers.init import trunc_normal_
from tetravit.layers.plain import is_plain_tree
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


class DeiT(Backbone):
    """Identical transformer blocks over the class token and the patches.

    Every level of `feature_maps` has the stride of the patches; images are zero-padded to whole patches, so that a
    map has ceil(Hi / patch_size) rows.

    image_size: side or (height, width) of the images for which the position embeddings are learned.
    distilled: add a distillation token between the class token and the patches (Sec. 4); the embedding is the mean of
    both tokens.

    Raises:
        ValueError: for a width not divisible by the heads.
    """

    attention_kinds = ("self", "class")

    def __init__(
        self,
        *,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path: float = 0.0,
        out_blocks: tuple[int, ...] | None = None,
        distilled: bool = False,
    ) -> None:
        super().__init__(in_chans)
        if out_blocks is None:
            out_blocks = OUT_BLOCKS.get(depth, (depth - 1,))
        self.out_blocks = out_blocks
        self.channels = (dim,) * len(out_blocks)
        self.strides = (patch_size,) * len(out_blocks)
        self.embed_dim, self.num_embeddings = dim, 2 if distilled else 1
        self.num_prefix = self.num_embeddings
        self.patch_embed = PatchEmbed.of_size(in_chans, dim, patch_size)
        self.cls_token = ClassToken(dim)
        self.dist_token = ClassToken(dim) if distilled else None
        self.pos_embed = LearnedPosition(
            dim, self.patch_embed.grid(image_size), num_prefix=self.num_embeddings
        )
        rates = linear_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(dim, num_heads, qkv_bias=True, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: normal with standard deviation 0.02 in linear layers, PyTorch's elsewhere."""
        trunc_normal_(self.pos_embed.table, std=0.02)
        for token in self._tokens():
            trunc_normal_(token.token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        names = {"pos_embed.table", "cls_token.token"}
        return names | {"dist_token.token"} if self.dist_token else names

    def stages(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [self.patch_embed, *self._tokens(), self.pos_embed]
        return [stem, *([block] for block in self.blocks), [self.norm]]

    @property
    def cam_layer(self) -> str:
        return f"blocks.{len(self.blocks) - 1}.norm1"  # after it, only the class token is used

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        x, grid = self._embed(images)
        maps = []
        for i, block in enumerate(self.blocks):
            x = self.run(block, x)
            if i in self.out_blocks:
                maps.append(
                    x[:, self.num_embeddings :].unflatten(1, grid).permute(0, 3, 1, 2)
                )  # (B, C, H, W)
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        x, _ = self._embed(images)
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)  # (B, T + N, C)

    def pool(self, features: Tensor) -> Tensor:
        return features[:, : self.num_embeddings].mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self._tokens_out(images).mean(dim=1)

    def embeddings(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._tokens_out(images).unbind(dim=1)

    def token_attention(self, images: Tensor) -> Iterator[TokenAttention]:
        x, grid = self._embed(images)
        for i, block in enumerate(cast(Iterable[Block], self.blocks)):
            rows = partial(block.attn.rows, block.norm1(x))
            yield TokenAttention(
                "self", f"blocks.{i}.attn", grid, self.num_prefix, block.attn.num_heads, rows
            )
            x = self.run(block, x)

    def _attention(self, images: Tensor, kinds: frozenset[AttentionKind]) -> Iterator[AttentionMap]:
        x, grid = self._embed(images)
        for i, block in enumerate(cast(Iterable[Block], self.blocks)):
            yield from attention_records(
                block.attn,
                block.norm1(x),
                kinds,
                layer=f"blocks.{i}.attn",
                grid=grid,
                stride=self.strides[0],
                prefix=self.num_prefix,
            )
            x = self.run(block, x)

    def _tokens_out(self, images: Tensor) -> Tensor:
        """Images -> the T prefix tokens (B, T, C); the last block is computed for these tokens only."""
        x, _ = self._embed(images)
        *body, last = self.blocks
        for block in body:
            x = self.run(block, x)
        if is_plain_tree(last, self.norm):
            return self.norm(self.run(last, x, self.num_embeddings))
        return self.norm(self.run(last, x))[:, : self.num_embeddings]

    def _tokens(self) -> list[ClassToken]:
        return [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Images -> prefix tokens and patches with position embeddings (B, T + N, C), and the grid."""
        self.check(images)
        x = self.patch_embed(images)  # (B, C, H, W)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).mT  # (B, N, C)
        for token in reversed(self._tokens()):
            x = token(x)
        return x + self.pos_embed(grid), grid


# fmt: off
VARIANTS = {  # facebookresearch/deit@7e160fe models.py
    "deit_tiny":            partial(DeiT, dim=192, num_heads=3),
    "deit_small":           partial(DeiT, dim=384, num_heads=6),
    "deit_base":            partial(DeiT, dim=768, num_heads=12),
    "deit_tiny_distilled":  partial(DeiT, dim=192, num_heads=3,  distilled=True),
    "deit_small_distilled": partial(DeiT, dim=384, num_heads=6,  distilled=True),
    "deit_base_distilled":  partial(DeiT, dim=768, num_heads=12, distilled=True),
}
# fmt: on
ALIASES = {f"{name}_patch16_224": name for name in VARIANTS}  # the authors' names
