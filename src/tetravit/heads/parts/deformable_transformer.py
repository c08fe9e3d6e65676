"""The transformer of DINO-DETR: an encoder over the tokens of all levels, a decoder over boxes that it refines.

Layers norm after each residual. Names of modules are those of the published checkpoints.

Shapes: B images, L levels, N tokens, Q queries, C width, K classes.
Source: IDEA-Research/DINO@faa8520 models/dino/deformable_transformer.py.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.coding import inverse_sigmoid
from tetravit.boxes.suppression import rows
from tetravit.heads.parts.levels import Levels, sine_embedding
from tetravit.layers.deformable_attention import DeformableAttention, Shapes
from tetravit.layers.precision import wide
from tetravit.layers.recompute import recomputed

PRIOR = -math.log(99)  # every class starts with probability 0.01


class Sizes(NamedTuple):
    """Sides of a transformer. hidden: of the layers between attentions. points: samples per head and level."""

    width: int = 256
    heads: int = 8
    levels: int = 4
    points: int = 4
    hidden: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6


class BoxLayers(nn.Module):
    """Linear layers with ReLU between them: C -> ... -> `out`."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def reset_last(self) -> None:
        """Weights and bias of the last layer are 0: boxes start where they are."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class SelfAttention(nn.Module):
    """Multi-head attention among queries (B, Q, C), with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """position: added to queries and keys. mask: (Q, Q) bool, True: blocked, from row to column; None: none."""
        dim = x.shape[2]
        w, b = self.in_proj_weight, self.in_proj_bias
        qk = F.linear(x + position, w[: 2 * dim], b[: 2 * dim])
        v = F.linear(x, w[2 * dim :], b[2 * dim :])
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (*qk.chunk(2, dim=-1), v)
        )  # (B, H, Q, D)
        open_ = None if mask is None else ~mask
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=open_)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Deformable attention of all tokens to all levels, then two linear layers."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(s.width, levels=s.levels, heads=s.heads, points=s.points)
        self.norm1 = nn.LayerNorm(s.width)
        self.linear1 = nn.Linear(s.width, s.hidden)
        self.linear2 = nn.Linear(s.hidden, s.width)
        self.norm2 = nn.LayerNorm(s.width)

    def forward(
        self, x: Tensor, position: Tensor, references: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """Tokens (B, N, C), their positions, and where they lie on every level (B, N, L, 2)."""
        x = self.norm1(x + self.self_attn(x + position, references, x, shapes, padding))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    """Layers over the tokens of all levels. recompute: each again in the backward pass, to keep less."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(s) for _ in range(s.encoder_layers))
        self.recompute = False

    def forward(
        self, x: Tensor, position: Tensor, references: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """As in a layer."""
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = recomputed(layer, x, position, references, shapes, padding)
            else:
                x = layer(x, position, references, shapes, padding)
        return x


class DecoderLayer(nn.Module):
    """Attention among the queries, deformable attention around their boxes, two linear layers."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.cross_attn = DeformableAttention(s.width, levels=s.levels, heads=s.heads, points=s.points)
        self.norm1 = nn.LayerNorm(s.width)
        self.self_attn = SelfAttention(s.width, s.heads)
        self.norm2 = nn.LayerNorm(s.width)
        self.linear1 = nn.Linear(s.width, s.hidden)
        self.linear2 = nn.Linear(s.hidden, s.width)
        self.norm3 = nn.LayerNorm(s.width)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        boxes: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """boxes: (B, Q, L, 4), the reference boxes in shares of each level."""
        x = self.norm2(x + self.self_attn(x, position, mask))
        x = self.norm1(x + self.cross_attn(x + position, boxes, memory, shapes, padding))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Decoder(nn.Module):
    """Layers that refine boxes one after another. The two heads, entry 0 of their lists, serve every layer."""

    def __init__(self, s: Sizes, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(s) for _ in range(s.decoder_layers))
        self.norm = nn.LayerNorm(s.width)
        self.ref_point_head = BoxLayers((2 * s.width, s.width, s.width))
        self.bbox_embed = nn.ModuleList([BoxLayers((s.width, s.width, s.width, 4))])
        self.class_embed = nn.ModuleList([nn.Linear(s.width, num_classes)])

    def forward(
        self,
        x: Tensor,
        logits: Tensor,
        memory: Tensor,
        ratios: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Refine boxes, a step per layer; a step is learned from the losses of its own layer and of the next.

        Args:
            x: contents (B, Q, C).
            logits: of the first boxes (B, Q, 4), cx cy w h.
            memory: (B, N, C). ratios: (B, L, 2), the share of each level that is inside.
            mask: of the attention among queries; None: none.

        Returns:
            Logits (layers, B, Q, K) and boxes (layers, B, Q, 4), cx cy w h in 0..1 of the image.
        """
        scale = ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        reference = logits.sigmoid()
        previous, states = [reference], []
        for layer in self.layers:
            boxes = reference[:, :, None] * scale
            position = self.ref_point_head(sine_embedding(boxes[:, :, 0], x.shape[2] // 2).to(x.dtype))
            x = layer(x, position, boxes, memory, shapes, padding, mask)
            refined = (wide(self.bbox_embed[0](x)) + inverse_sigmoid(reference)).sigmoid()
            reference = refined.detach()
            previous.append(refined)
            states.append(self.norm(x))
        hidden = torch.stack(states)
        steps = wide(self.bbox_embed[0](hidden))
        boxes = (steps + inverse_sigmoid(torch.stack(previous[:-1]))).sigmoid()
        return wide(self.class_embed[0](hidden)), boxes


class Selected(NamedTuple):
    """The tokens with the highest scores, best first."""

    index: Tensor  # type: ignore[assignment] # (B, Q) int64, of tokens
    logits: Tensor  # (B, Q, K)
    boxes: Tensor  # (B, Q, 4), logits of cx cy w h; infinite for padding


class Transformer(nn.Module):
    """Encoder, selection of tokens as queries, decoder."""

    def __init__(self, s: Sizes, num_classes: int, num_queries: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(s.levels, s.width))
        self.encoder = Encoder(s)
        self.decoder = Decoder(s, num_classes)
        self.tgt_embed = nn.Embedding(num_queries, s.width)
        self.enc_output = nn.Linear(s.width, s.width)
        self.enc_output_norm = nn.LayerNorm(s.width)
        self.enc_out_bbox_embed = BoxLayers((s.width, s.width, s.width, 4))
        self.enc_out_class_embed = nn.Linear(s.width, num_classes)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        for score in (self.enc_out_class_embed, *self.decoder.class_embed):
            assert isinstance(score, nn.Linear)
            score.reset_parameters()
            nn.init.constant_(score.bias, PRIOR)
        for box in (self.enc_out_bbox_embed, *self.decoder.bbox_embed):
            assert isinstance(box, BoxLayers)
            box.reset_last()

    def encode(self, tokens: Tensor, levels: Levels, padding: Tensor | None) -> Tensor:
        """Tokens of all levels (B, N, C) -> encoded tokens (B, N, C)."""
        of_level = [self.level_embed[i].expand(h * w, -1) for i, (h, w) in enumerate(levels.shapes)]
        position = levels.positions(tokens.shape[2]).to(tokens.dtype) + torch.cat(of_level)
        references = levels.references()
        references = references.to(torch.promote_types(references.dtype, tokens.dtype))
        return self.encoder(tokens, position, references, levels.shapes, padding)

    def select(self, memory: Tensor, levels: Levels) -> Selected:
        """The tokens whose best class scores highest, as many as there are queries.

        Where there are fewer tokens the last one is selected again.
        """
        count = self.tgt_embed.num_embeddings
        proposals, used = levels.proposals()
        memory = memory.masked_fill(~used[..., None], 0)
        with torch.no_grad():
            features = self.enc_output_norm(self.enc_output(memory))
            scores = wide(self.enc_out_class_embed(features)).amax(dim=2)
            if torch.compiler.is_exporting() or scores.shape[1] < count:
                scores = F.pad(scores, (0, count), value=-math.inf)
            index = scores.topk(count, dim=1).indices.clamp(max=memory.shape[1] - 1)
        features = self.enc_output_norm(self.enc_output(rows(memory, index)))
        logits = wide(self.enc_out_class_embed(features))
        boxes = wide(self.enc_out_bbox_embed(features)) + rows(proposals, index)
        return Selected(index, logits, boxes)
