"""DINO-DETR: set prediction from queries, without anchors and NMS.

Zhang et al. 2023, DINO: DETR with Improved DeNoising Anchor Boxes (arXiv:2203.03605). The tokens that score highest
give the boxes of the queries, their contents are learned; a decoder refines the boxes layer by layer. Each object is
assigned to one query. In training, noisy copies of the objects are queries too.

Names of parameters are those of the published checkpoints.

Shapes: B images, M objects of an image, Q queries, K classes, N tokens of all levels, pad denoising queries.
Source of every number: IDEA-Research/DINO@faa8520 config/DINO/DINO_4scale.py, models/dino/dino.py, and its scripts
for `box_noise`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.boxes.coding import corners, relative
from tetravit.boxes.denoising import DenoisingQueries, Draws, denoising_queries, num_groups, positives
from tetravit.boxes.hungarian import generalized_iou, match
from tetravit.boxes.suppression import PAD_SCORE, SelectedBoxes, best, rows
from tetravit.heads.base import DetectionHead, Gather
from tetravit.heads.parts.conv import HalvingConv
from tetravit.heads.parts.deformable_transformer import Sizes, Transformer
from tetravit.heads.parts.levels import Levels
from tetravit.heads.parts.query_points import QueryPoints, Recorder
from tetravit.seeds import row_keys
from tetravit.structures import Target

Pairs = Sequence[tuple[Tensor, Tensor]]  # per image (queries, objects)

BOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # of the losses, beside 1 for the classes
PURPOSE = 0x646E  # of the random numbers of the denoising, apart from others
GROUPS = 32  # of the norms of the input projections, where a group has two channels or more


class Proposals(NamedTuple):
    """The selected tokens, best first: initial queries of the decoder."""

    index: Tensor  # type: ignore[assignment] # (B, Q) int64: levels one after another, row by row
    logits: Tensor  # (B, Q, K)
    boxes: Tensor  # (B, Q, 4)


class Denoising(NamedTuple):
    """Predictions of the denoising queries."""

    logits: Tensor  # (layers, B, pad, K)
    boxes: Tensor  # (layers, B, pad, 4)
    groups: int


class SetPrediction(NamedTuple):
    """One prediction per query and layer of the decoder. Boxes: cx cy w h in 0..1 of each image's own size."""

    logits: Tensor  # (layers, B, Q, K)
    boxes: Tensor  # (layers, B, Q, 4)
    proposals: Proposals
    denoising: Denoising | None  # None: evaluation


class Step(NamedTuple):
    """A training step over its micro-batches and ranks, so that their number changes no loss."""

    objects: float  # per micro-batch and rank; at least 1 in all
    most: int  # objects of an image, at most

    @classmethod
    def of(cls, batches: Sequence[Sequence[Sized]], gather: Gather = lambda value: [value]) -> "Step":
        """batches: per micro-batch the labels of every image."""
        counts = [len(labels) for batch in batches for labels in batch]
        parts = gather((sum(counts), max(counts, default=0)))
        objects, most = sum(part[0] for part in parts), max(part[1] for part in parts)
        return cls(max(objects, 1) / (len(parts) * len(batches)), most)


class DinoDETR(DetectionHead):
    """Queries over 4 levels (strides 8 to 64) or 5 (strides 4 to 64).

    num_queries: objects that can be predicted. max_detections: pairs of query and class that are kept. num_denoising:
    noisy copies of the objects in training; 0: none. label_noise: twice the share of copies with a random class.
    box_noise: how far sides of a copy move at most, in half sides; negatives move up to twice as far. width: of the
    tokens. hidden: of the layers between attentions. num_points: samples per head and level.

    The authors' checkpoints are not in the catalogue; a file of theirs loads with `weights=FILE`, the head alone
    where it holds no backbone.

    Raises:
        ValueError: for an unsupported number of levels, heads, queries or layers.
    """

    fresh = (
        "label_enc.weight",
        "transformer.enc_out_class_embed.*",
        "transformer.decoder.class_embed.*",
    )
    fixed_options = ("num_queries", "num_levels", "width", "hidden", "encoder_layers", "decoder_layers")
    max_detections = 300
    least_side = 96

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        num_queries: int = 900,
        num_levels: int = 4,
        max_detections: int = 300,
        num_denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        width: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        hidden: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
    ) -> None:
        super().__init__()
        if num_levels not in (4, 5):
            raise ValueError(f"num_levels of dino_detr is 4 or 5; got {num_levels!r}.")
        if width % 4 or width % num_heads:
            raise ValueError(
                f"width of dino_detr is a multiple of 4 and of its {num_heads} heads; got {width!r}."
            )
        for name, least, value in (
            ("num_queries", 1, num_queries),
            ("num_denoising", 0, num_denoising),
            ("decoder_layers", 1, decoder_layers),
        ):
            if value < least:
                raise ValueError(f"{name} of dino_detr is {least} or more; got {value!r}.")
        self.num_classes, self.num_queries, self.num_levels = num_classes, num_queries, num_levels
        self.max_detections, self.num_denoising = max_detections, num_denoising
        self.label_noise, self.box_noise = label_noise, box_noise
        self.first_map = 5 - num_levels  # the finest map is for 5 levels
        self.strides = tuple(strides)
        self._step: Step | None = None
        sizes = Sizes(width, num_heads, num_levels, num_points, hidden, encoder_layers, decoder_layers)
        self.transformer = Transformer(sizes, num_classes, num_queries)
        self.label_enc = nn.Embedding(num_classes + 1, width)
        projections = [nn.Conv2d(c, width, 1) for c in channels[self.first_map :]]
        projections.append(HalvingConv(channels[-1], width))
        self.input_proj = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(_groups(width), width)) for conv in projections
        )
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(
        self,
        maps: Sequence[Tensor],
        sizes: Tensor | None = None,
        targets: Sequence[Target] | None = None,
        draws: Draws | None = None,
    ) -> SetPrediction:
        """Predict a set of objects.

        Args:
            maps: at strides 4, 8, 16, 32.
            sizes: (B, 2), height and width of each image without its padding; None: there is none.
            targets: in training the objects, boxes in pixels; None: no denoising.
            draws: the random numbers of the denoising; None: in a run those of each image by its place in the batch
                of the whole step (`seeds.row_keys`), else torch's.
        """
        canvas = (maps[0].shape[2] * self.strides[0], maps[0].shape[3] * self.strides[0])
        projected = self.project(maps)
        levels = Levels.of(projected, canvas, sizes)
        padding = None if sizes is None else levels.padding()
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)  # (B, N, C)
        memory = self.transformer.encode(tokens, levels, padding)
        selected = self.transformer.select(memory, levels)
        content = self.transformer.tgt_embed.weight.expand(memory.shape[0], -1, -1)
        boxes, mask, noisy = selected.boxes.detach(), None, None
        if self.training and targets is not None and self.num_denoising:
            noisy = self._noisy(targets, sizes if sizes is not None else _whole(canvas, memory), draws)
            content, mask = torch.cat((noisy.content.to(content.dtype), content), dim=1), noisy.mask
            boxes = torch.cat((noisy.boxes, boxes), dim=1)
            content = (
                content + 0 * self.label_enc.weight[0, 0]
            )  # has a gradient where there is no object, too
        logits, boxes = self.transformer.decoder(
            content, boxes, memory, levels.ratios(), levels.shapes, padding, mask
        )
        proposals = Proposals(selected.index, selected.logits, selected.boxes.sigmoid())
        if noisy is None:
            return SetPrediction(logits, boxes, proposals, None)
        pad = noisy.content.shape[1]
        denoised = Denoising(logits[:, :, :pad], boxes[:, :, :pad], noisy.groups)
        return SetPrediction(logits[:, :, pad:], boxes[:, :, pad:], proposals, denoised)

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps in use -> levels of `width` channels, and one of half the resolution of the coarsest."""
        used = [*maps[self.first_map :], maps[-1]]
        return [projection(x) for projection, x in zip(self.input_proj, used, strict=True)]

    def decode(
        self,
        outputs: SetPrediction,
        sizes: Tensor,
        max_detections: int | None = None,
        class_agnostic: bool | None = None,
    ) -> SelectedBoxes:
        """The pairs of query and class with the highest scores; boxes in pixels, which may reach beyond the image.

        class_agnostic: without effect, because nothing suppresses anything.
        """
        scores, pair = self._best(outputs, max_detections)
        boxes = outputs.boxes[-1]
        sides = sizes.flip(1).to(boxes.dtype).repeat(1, 2)[:, None]  # (B, 1, 4): width height width height
        chosen = corners(rows(boxes, pair // self.num_classes)) * sides
        valid = scores > PAD_SCORE
        return SelectedBoxes(chosen, scores.clamp(min=0), pair % self.num_classes, valid)

    def steps(
        self, outputs: SetPrediction, sizes: Tensor, max_detections: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """How the boxes that `decode` selects came about.

        Returns:
            Their queries (B, P), and their boxes (layers + 1, B, P, 4) in pixels: the proposals', then of each layer.
        """
        _, pair = self._best(outputs, max_detections)
        queries = pair // self.num_classes
        sides = sizes.flip(1).to(outputs.boxes.dtype).repeat(1, 2)[:, None]
        layers = [outputs.proposals.boxes, *outputs.boxes]
        return queries, torch.stack([corners(rows(boxes, queries)) * sides for boxes in layers])

    def attention_points(
        self, maps: Sequence[Tensor], sizes: Tensor | None = None
    ) -> tuple[SetPrediction, QueryPoints]:
        """What `forward` gives, and where each layer of the decoder sampled the maps for each query."""
        canvas = (maps[0].shape[2] * self.strides[0], maps[0].shape[3] * self.strides[0])
        layers = [layer.cross_attn for layer in self.transformer.decoder.layers]
        with Recorder(layers, canvas) as recorder:  # type: ignore[arg-type]
            outputs = self(maps, sizes)
        return outputs, recorder.points()

    def _best(self, outputs: SetPrediction, max_detections: int | None) -> tuple[Tensor, Tensor]:
        """Scores (B, P) of the best pairs of query and class, and the pairs: query * K + class."""
        most, _ = self.limits(max_detections, None)
        return best(outputs.logits[-1].sigmoid().flatten(1), most)

    def loss(self, outputs: SetPrediction, targets: Sequence[Target], sizes: Tensor) -> dict[str, Tensor]:
        """Focal, L1 and GIoU losses of every layer, of the proposals and of the denoising, times their weights.

        Each is a sum over the batch, divided by the number of objects (of copies) per rank and micro-batch: the mean
        over these is the loss of the whole step. The names end in the number of the layer, `_interm` for the
        proposals, nothing for the last layer; `_dn` is the denoising.
        """
        labels = [target.labels for target in targets]
        truth = [relative(t.boxes.float(), size) for t, size in zip(targets, sizes, strict=True)]
        count = self._facts(labels).objects
        layers = [*zip(outputs.logits, outputs.boxes, strict=True), outputs.proposals[1:]]
        names = [*_names(len(outputs.logits)), "_interm"]
        times = len(layers)
        pairs = match(
            torch.cat([logits for logits, _ in layers]),
            torch.cat([boxes for _, boxes in layers]),
            labels * times,
            truth * times,
        )
        losses: dict[str, Tensor] = {}
        for i, (name, (logits, boxes)) in enumerate(zip(names, layers, strict=True)):
            part = pairs[i * len(labels) : (i + 1) * len(labels)]
            losses |= _losses(name, logits, boxes, part, labels, truth, count)
        if self.num_denoising:
            losses |= self._denoising_losses(outputs, labels, truth, count)
        return losses

    def _denoising_losses(
        self, outputs: SetPrediction, labels: list[Tensor], truth: list[Tensor], count: float
    ) -> dict[str, Tensor]:
        noisy, layers = outputs.denoising, len(outputs.logits)
        names = [f"_dn{name}" for name in _names(layers)]
        if noisy is None or not noisy.logits.shape[2]:
            zero = outputs.logits.new_zeros(())
            return {f"loss_{kind}{name}": zero for name in names for kind in ("ce", "bbox", "giou")}
        most = noisy.logits.shape[2] // (2 * noisy.groups)
        device = noisy.logits.device
        pairs = [positives(len(x), most, noisy.groups, device) for x in labels]
        losses: dict[str, Tensor] = {}
        for name, logits, boxes in zip(names, noisy.logits, noisy.boxes, strict=True):
            losses |= _losses(name, logits, boxes, pairs, labels, truth, count * noisy.groups)
        return losses

    def _noisy(self, targets: Sequence[Target], sizes: Tensor, draws: Draws | None) -> DenoisingQueries:
        labels = [target.labels for target in targets]
        most = self._facts(labels).most
        if draws is None:
            draws = Draws.of_images(
                row_keys(len(labels), PURPOSE, sizes.device),
                labels,
                groups=num_groups(most, self.num_denoising),
                num_classes=self.num_classes,
                label_noise=self.label_noise,
            )
        return denoising_queries(
            labels,
            [relative(t.boxes.float(), size) for t, size in zip(targets, sizes, strict=True)],
            self.label_enc,
            draws,
            num_queries=self.num_queries,
            num_denoising=self.num_denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
            most=most,
        )

    @contextmanager
    def whole_step(self, targets: Sequence[Sequence[Target]], gather: Gather) -> Iterator[None]:
        self._step = Step.of([[target.labels for target in batch] for batch in targets], gather)
        try:
            yield
        finally:
            self._step = None

    def _facts(self, labels: Sequence[Tensor]) -> Step:
        """Of the step under way; outside one this batch is the step."""
        return self._step or Step.of([labels])

    def set_grad_checkpointing(self, mode: bool = True) -> None:
        """Recompute the layers of the encoder in the backward pass."""
        self.transformer.encoder.recompute = mode

    @classmethod
    def classes_in(cls, state: Mapping[str, Tensor]) -> int | None:
        bias = state.get("transformer.decoder.class_embed.0.bias")
        return None if bias is None else len(bias)

    @classmethod
    def options_in(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, key, axis in (
            ("num_queries", "transformer.tgt_embed.weight", 0),
            ("num_levels", "transformer.level_embed", 0),
            ("width", "transformer.level_embed", 1),
            ("hidden", "transformer.encoder.layers.0.linear1.weight", 0),
        ):
            if key in state:
                options[name] = state[key].shape[axis]
        for part in ("encoder", "decoder"):
            layers = {key.split(".")[3] for key in state if key.startswith(f"transformer.{part}.layers.")}
            if layers:
                options[f"{part}_layers"] = len(layers)
        return options


def _losses(
    name: str,
    logits: Tensor,
    boxes: Tensor,
    pairs: Pairs,
    labels: Sequence[Tensor],
    truth: Sequence[Tensor],
    count: float,
) -> dict[str, Tensor]:
    """The three losses of one set of predictions (B, Q, K), (B, Q, 4), in float32."""
    image = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)])
    query = torch.cat([queries for queries, _ in pairs])
    label = torch.cat([x[objects] for x, (_, objects) in zip(labels, pairs, strict=True)])
    wanted = torch.cat([x[objects] for x, (_, objects) in zip(truth, pairs, strict=True)])
    from torchvision.ops import sigmoid_focal_loss  # loads slowly, and only training needs it

    hot = torch.zeros_like(logits, dtype=torch.float32)
    hot[image, query, label] = 1.0
    focal = sigmoid_focal_loss(logits.float(), hot, alpha=0.25, gamma=2.0, reduction="sum")
    placed = boxes[image, query].float()
    distance = F.l1_loss(placed, wanted, reduction="sum")
    overlap = generalized_iou(corners(placed), corners(wanted))
    return {
        f"loss_ce{name}": focal / count,
        f"loss_bbox{name}": BOX_WEIGHT * distance / count,
        f"loss_giou{name}": GIOU_WEIGHT * (1 - overlap).sum() / count,
    }


def _groups(width: int) -> int:
    """Groups of at least two channels: the coarsest level may be one pixel, and one value has no variance."""
    return GROUPS if width % GROUPS == 0 and width >= 2 * GROUPS else math.gcd(GROUPS, width // 2)


def _names(layers: int) -> list[str]:
    """How the losses of the layers end: "_0", "_1", ..., and "" for the last."""
    return [f"_{i}" for i in range(layers - 1)] + [""]


def _whole(canvas: tuple[int, int], like: Tensor) -> Tensor:
    return torch.tensor([canvas] * len(like), device=like.device)


HEADS = {"dino_detr": DinoDETR}
