"""DeiT: data-efficient image transformers (Touvron et al. 2021, arXiv:2012.12877), the baseline of comparisons.

The plain vision transformer: patches, learned positions, a class token, equal blocks of attention and MLP.

Shapes: B batch, H W token grid, N = H * W patches, C width.
Source of every number: facebookresearch/deit@7e160fe models.py.
"""

from functools import partial

from torch import Tensor, nn

from tetravit.backbones.base import Backbone
from tetravit.layers.drop_path import linear_rates
from tetravit.layers.vit import OUT_BLOCKS, Block, ClassToken, Grid, LearnedPosition, PatchEmbed


class DeiT(Backbone):
    """A column of equal blocks that the class token passes with the patches.

    Every level of `feature_maps` has the stride of the patches; an image side that they do not divide is
    padded with zeros, so that a map has ceil(Hi / patch_size) rows.

    image_size: side or (height, width) of the images whose grid the position embeddings are learned for.

    Raises:
        ValueError: for a width that the heads do not divide.
    """

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
    ) -> None:
        super().__init__(in_chans)
        if out_blocks is None:
            out_blocks = OUT_BLOCKS.get(depth, (depth - 1,))
        self.out_blocks = out_blocks
        self.channels = (dim,) * len(out_blocks)
        self.strides = (patch_size,) * len(out_blocks)
        self.embed_dim = dim
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size)
        self.cls_token = ClassToken(dim)
        self.pos_embed = LearnedPosition(dim, self.patch_embed.grid(image_size), num_prefix=1)
        rates = linear_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(dim, num_heads, qkv_bias=True, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: normal of deviation 0.02 in linear layers, PyTorch's own elsewhere."""
        nn.init.trunc_normal_(self.pos_embed.table, std=0.02)
        nn.init.trunc_normal_(self.cls_token.token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed.table", "cls_token.token"}

    def stages(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [self.patch_embed, self.cls_token, self.pos_embed]
        return [stem, *([block] for block in self.blocks), [self.norm]]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        x, grid = self._embed(images)
        maps = []
        for i, block in enumerate(self.blocks):
            x = self.run(block, x)
            if i in self.out_blocks:
                maps.append(x[:, 1:].mT.unflatten(2, grid))  # (B, C, H, W)
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        x, _ = self._embed(images)
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)  # (B, 1 + N, C)

    def pool(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        x, _ = self._embed(images)
        *body, last = self.blocks
        for block in body:
            x = self.run(block, x)
        return self.norm(self.run(last, x, 1)[:, 0])  # the last block for the class token alone

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """How tokens (rows) weigh tokens in each block, class token first: (B, heads, 1 + N, 1 + N) each."""
        x, _ = self._embed(images)
        maps = []
        for block in self.blocks:
            maps.append(block.attention(x))  # type: ignore[operator]
            x = self.run(block, x)
        return maps

    def class_attention(self, images: Tensor) -> Tensor:
        """How the class token weighs the patches in the last block (B, heads, H, W); it also weighs itself."""
        x, grid = self._embed(images)
        *body, last = self.blocks
        for block in body:
            x = self.run(block, x)
        return last.attention(x)[:, :, 0, 1:].unflatten(2, grid)  # type: ignore[operator]

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Images -> the class token and the patches with their positions (B, 1 + N, C), and the grid."""
        self.check(images)
        x = self.patch_embed(images)  # (B, C, H, W)
        grid = (x.shape[2], x.shape[3])
        return self.cls_token(x.flatten(2).mT) + self.pos_embed(grid), grid


# fmt: off
VARIANTS = {  # facebookresearch/deit@7e160fe models.py
    "deit_tiny":  partial(DeiT, dim=192, num_heads=3),
    "deit_small": partial(DeiT, dim=384, num_heads=6),
    "deit_base":  partial(DeiT, dim=768, num_heads=12),
}
# fmt: on
ALIASES: dict[str, str] = {}
