"""Linear probe of frozen features: many linear classifiers trained at once, selected on held-out training images.

Two forms. `augmented`, as published: features of new random crops are computed in every epoch. `cached`, faster:
features are computed once, without augmentation. Every tenth training image is held out to select learning rate and
features; the validation set is not used for selection. As in DINO's script: SGD with momentum 0.9, no weight decay,
cosine schedule per epoch, weights from N(0, 0.01). The grid of learning rates is DINOv2's.

Shapes: N images, C width, H classifiers (one per learning rate), K classes.
Source: facebookresearch/dino@7c446df eval_linear.py.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from tetravit.data.augment import parse
from tetravit.protocols.base import Loaders, Protocol, ProtocolConfig, Scores
from tetravit.protocols.parts.features import Embed, Features, backbone_of, collected, everywhere
from tetravit.structures import Batch
from tetravit.world import World

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
HELD_OUT = 10  # every tenth training image
AUGMENT = "crop(scale=(0.08, 1.0), interpolation='bilinear') | flip"
ALONE, BESIDE = "embedding", "embedding and patches"
QUICK = (
    "the linear probe computes features once, without augmentation; published figures are of augmented images:"
    " evaluate.features=augmented"
)


class LinearConfig(ProtocolConfig):
    """The `[evaluate]` section of the linear probe."""

    features: Literal["cached", "augmented"] = Field(
        default="cached",
        description="cached: computed once, without augmentation; augmented: recomputed each epoch, as published.",
    )
    augment: str = Field(
        default=AUGMENT, description="Augmentation of the training images, with features=augmented."
    )
    rates: tuple[float, ...] = Field(default=RATES, description="Learning rates to try, per 256 images.")
    epochs: int = Field(default=100, ge=1, description="Passes over the training images.")
    batch_size: int = Field(default=256, ge=1, description="Images per step, over all ranks.")
    with_patches: bool = Field(
        default=True, description="Also try the embedding concatenated with the mean patch feature."
    )
    seed: int = Field(default=0, ge=0, description="Seed of image order and initial weights.")

    @field_validator("augment")
    @classmethod
    def _readable(cls, text: str) -> str:
        parse(text, size=1)
        return text


class Linear(Protocol):
    """linear: top-1 of the classifier selected on held-out training images. linear_top5.

    linear_best: the highest top-1 of all classifiers on the validation set, as reported by the authors' scripts; it
    is selected on the set it is measured on. findings: the learning rates, and the selected one.
    """

    name = "linear"
    kinds = ("classify",)
    primary_metrics = ("linear",)
    Config = LinearConfig

    def prepare(self, loaders: Loaders) -> list[str]:
        return [QUICK] if self.config.features == "cached" else []

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        config, classes = self.config, loaders.info.num_classes
        embed = _both(backbone_of(model)) if config.with_patches else backbone_of(model)
        test = everywhere(collected(model, loaders.validation, embed), loaders.world)
        with torch.autocast(test.features.device.type, enabled=False):
            if config.features == "augmented":
                return _augmented(model, embed, loaders, test, classes, config)
            train = everywhere(collected(model, loaders.train, embed), loaders.world)
            return probe(train, test, classes, config, split=config.with_patches)


def probe(
    train: Features, test: Features, num_classes: int, config: LinearConfig, *, split: bool = False
) -> Scores:
    """Train on cached features and select; `split`: two features of equal width are concatenated, the embedding
    first.

    Raises:
        ValueError: for too few training images.
    """
    held = _held_out(len(train), config.seed).to(train.features.device)
    x, labels = train.features[~held], train.labels.to(held.device)[~held]
    generator = torch.Generator().manual_seed(config.seed)
    batch = min(config.batch_size, len(x))
    heads = _Classifiers(train.features.shape[1], num_classes, config, batch, split, x.device)
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            heads.step(x[rows], labels[rows], epoch)
    return heads.scores(train.features[held], train.labels.to(held.device)[held], test)


def _augmented(
    model: nn.Module, embed: Embed, loaders: Loaders, test: Features, num_classes: int, config: LinearConfig
) -> Scores:
    """Train on augmented images; held-out images are scored without augmentation."""
    batches = loaders.augmented(config.augment, batch_size=config.batch_size, seed=config.seed)
    try:
        held = _held_out(len(batches.dataset), config.seed)
        device, world = test.features.device, loaders.world
        heads = _Classifiers(
            test.features.shape[1], num_classes, config, batches.batch_size, config.with_patches, device
        )
        stream = batches.batches()
        for epoch in range(config.epochs):
            for _ in range(batches.steps_per_epoch):
                part = _rows(next(stream)[0], ~held)
                seen = collected(model, [part], embed) if len(part) else test.first(0)
                heads.step(seen.features, seen.labels.to(device), epoch, world)
    finally:
        batches.close()
    parts = (_rows(batch, held) for batch in loaders.train)
    chosen_on = everywhere(collected(model, (part for part in parts if len(part)), embed), world)
    return heads.scores(chosen_on.features, chosen_on.labels.to(device), test)


def _held_out(count: int, seed: int) -> Tensor:
    """Mask of the held-out training images, bool (count,)."""
    if count < 2 * HELD_OUT:
        raise ValueError(f"A linear probe needs {2 * HELD_OUT} training images; there are {count}.")
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[::HELD_OUT]] = True
    return held


def _rows(batch: Batch, wanted: Tensor) -> Batch:
    """The images of a batch selected by a mask over the set, bool (count,)."""
    kept = wanted[torch.tensor(batch.indices)]
    return Batch(
        batch.images[kept],
        batch.targets[kept],
        names=[name for name, keep in zip(batch.names, kept.tolist(), strict=True) if keep],
        indices=[index for index, keep in zip(batch.indices, kept.tolist(), strict=True) if keep],
    )


class _Classifiers:
    """One linear classifier per learning rate and kind of features, all trained on the same batches.

    width: of the features; split: two features of equal width are concatenated, the embedding first.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        config: LinearConfig,
        batch: int,
        split: bool,
        device: torch.device,
    ) -> None:
        self.config, self.split, self.num_classes = config, split, num_classes
        generator = torch.Generator().manual_seed(config.seed)
        self.rates = torch.tensor(config.rates, device=device) * batch / 256
        self.kinds = (ALONE, BESIDE) if split else (ALONE,)
        self.tensors: dict[str, tuple[Tensor, Tensor]] = {}
        for kind in self.kinds:
            wide = width // 2 if split and kind == ALONE else width
            weight = 0.01 * torch.randn(num_classes, wide, generator=generator).to(device)
            weight = weight.expand(len(config.rates), -1, -1).contiguous()  # (H, K, C)
            self.tensors[kind] = (weight, torch.zeros(weight.shape[:2], device=device))
        self.speeds = {kind: [torch.zeros_like(p) for p in pair] for kind, pair in self.tensors.items()}

    def step(self, features: Tensor, labels: Tensor, epoch: int, world: World | None = None) -> None:
        """An SGD step on features (N, C); with `world` each rank has its own batch."""
        factor = 0.5 * (1 + math.cos(math.pi * epoch / self.config.epochs))
        count = torch.tensor(float(len(features)), device=features.device)
        count = count if world is None else world.all_sum(count)
        for kind, (weight, bias) in self.tensors.items():
            x = self._of(features, kind)
            wrong = self._logits(x, weight, bias).softmax(2)  # (H, N, K)
            wrong[:, torch.arange(len(x), device=x.device), labels] -= 1
            gradients = [torch.einsum("hnk,nc->hkc", wrong, x), wrong.sum(1)]
            for p, g, speed in zip((weight, bias), gradients, self.speeds[kind], strict=True):
                g = g if world is None else world.all_sum(g)
                speed.mul_(0.9).add_(g / count.clamp(min=1))
                p.sub_(speed * (factor * self.rates).view(-1, *[1] * (p.ndim - 1)))

    def scores(self, held: Tensor, labels: Tensor, test: Features) -> Scores:
        """Select by held-out features (N, C) and labels (N,); score on the test images."""
        rows: list[dict[str, Any]] = []
        wanted = test.labels.to(held.device)
        for kind in self.kinds:
            chosen_by = self._hits(kind, held, labels, 1)
            top1, top5 = (self._hits(kind, test.features, wanted, k) for k in (1, min(5, self.num_classes)))
            rows += [
                {"features": kind, "rate": rate, "held_out": h, "top1": a, "top5": b}
                for rate, h, a, b in zip(self.config.rates, chosen_by, top1, top5, strict=True)
            ]
        best = max(rows, key=lambda row: row["held_out"])
        values = {
            "linear": best["top1"],
            "linear_top5": best["top5"],
            "linear_best": max(row["top1"] for row in rows),
        }
        summary = {"count": len(test), "probe": self.config.features, "chosen": best, "classifiers": rows}
        return Scores(values, summary)

    def _hits(self, kind: str, features: Tensor, labels: Tensor, top: int) -> list[float]:
        """Top-k accuracy per classifier."""
        total = torch.zeros(len(self.rates), device=features.device)
        for rows, wanted in zip(features.split(4096), labels.split(4096), strict=True):
            logits = self._logits(self._of(rows, kind), *self.tensors[kind])
            total += (logits.topk(top, dim=2).indices == wanted[None, :, None]).any(2).float().sum(1)
        shares: list[float] = (total / len(features)).tolist()
        return shares

    @staticmethod
    def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(N, C) -> (H, N, K)."""
        return torch.einsum("nc,hkc->hnk", x, weight) + bias[:, None]

    def _of(self, features: Tensor, kind: str) -> Tensor:
        """The embedding only, or interleaved with the mean patch feature, in the authors' channel order."""
        if not self.split:
            return features
        width = features.shape[1] // 2
        if kind == ALONE:
            return features[:, :width]
        return torch.stack((features[:, :width], features[:, width:]), dim=2).flatten(1)


def _both(backbone: Any) -> Embed:
    """The embedding concatenated with the mean patch feature (B, 2 C)."""

    def embed(images: Tensor) -> Tensor:
        return torch.cat((backbone(images), backbone.patch_features(images).mean((2, 3))), dim=1)

    return embed


PROTOCOLS = {"linear": Linear}
