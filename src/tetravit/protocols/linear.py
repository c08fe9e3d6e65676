"""Linear probe of frozen features: many linear classifiers trained at once, the best chosen on held-out images.

Features are computed once, without augmentation ("cached"), from which the published figures, that are trained on
augmented images, differ. Every tenth training image is held out to choose rate and features; the validation set
chooses nothing. As in DINO's script: SGD with momentum 0.9, no weight decay, a cosine per epoch, weights from
N(0, 0.01). The grid of rates is DINOv2's.

Shapes: N images, C width, H classifiers (one per rate), K classes.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.protocols.base import Loaders, Protocol, ProtocolConfig, Scores
from tetravit.protocols.parts.features import Features, backbone_of, collected, everywhere

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
HELD_OUT = 10  # every tenth training image


class LinearConfig(ProtocolConfig):
    """The `[evaluate]` section for the linear probe."""

    rates: tuple[float, ...] = Field(default=RATES, description="Learning rates per 256 images, all tried.")
    epochs: int = Field(default=100, ge=1, description="Passes over the features.")
    batch_size: int = Field(default=256, ge=1, description="Images per step.")
    with_patches: bool = Field(
        default=True, description="Also try the embedding beside the mean of the patch features."
    )
    seed: int = Field(default=0, ge=0, description="Of the order of the images and the initial weights.")


class Linear(Protocol):
    """linear: top-1 of the classifier that is best on held-out training images. linear_top5.

    linear_best: the highest top-1 of all classifiers on the validation set, as the authors' scripts report; it is
    chosen on the set that it is measured on. findings: the rates, and which one was chosen.
    """

    name = "linear"
    kinds = ("classify",)
    primary_metrics = ("linear",)
    Config = LinearConfig

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        config = self.config
        embed = _both(backbone_of(model)) if config.with_patches else None
        train = everywhere(collected(model, loaders.train, embed), loaders.world)
        test = everywhere(collected(model, loaders.validation, embed), loaders.world)
        return probe(train, test, loaders.info.num_classes, config, split=config.with_patches)


def probe(
    train: Features, test: Features, num_classes: int, config: LinearConfig, *, split: bool = False
) -> Scores:
    """Train and choose; `split`: the features are two of equal width side by side, the embedding first.

    Raises:
        ValueError: for too few training images to hold some out.
    """
    if len(train) < 2 * HELD_OUT:
        raise ValueError(f"A linear probe needs {2 * HELD_OUT} training images; there are {len(train)}.")
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(train), generator=generator)
    chosen_on, learned_on = order[::HELD_OUT], order[torch.arange(len(order)) % HELD_OUT != 0]
    width = train.features.shape[1] // (2 if split else 1)
    rows: list[dict[str, Any]] = []
    for kind in ("embedding", "embedding and patches") if split else ("embedding",):
        x, y = (_of(f.features, kind, width) for f in (train, test))
        labels, wanted = train.labels.to(x.device), test.labels.to(x.device)
        with torch.inference_mode(False), torch.enable_grad():
            weight, bias = _trained(
                x[learned_on].clone(), labels[learned_on].clone(), num_classes, config, generator
            )
        held = _hits(x[chosen_on], labels[chosen_on], weight, bias, 1)
        top1, top5 = (_hits(y, wanted, weight, bias, k) for k in (1, min(5, num_classes)))
        rows += [
            {"features": kind, "rate": rate, "held_out": h, "top1": a, "top5": b}
            for rate, h, a, b in zip(config.rates, held, top1, top5, strict=True)
        ]
    best = max(rows, key=lambda row: row["held_out"])
    values = {
        "linear": best["top1"],
        "linear_top5": best["top5"],
        "linear_best": max(row["top1"] for row in rows),
    }
    return Scores(values, {"count": len(test), "probe": "cached", "chosen": best, "classifiers": rows})


def _trained(
    x: Tensor, labels: Tensor, num_classes: int, config: LinearConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights (H, K, C) and biases (H, K) of one classifier per rate, each trained on every batch."""
    H, batch = len(config.rates), min(config.batch_size, len(x))
    weight = 0.01 * torch.randn(num_classes, x.shape[1], generator=generator).to(x.device)
    weight = weight.expand(H, -1, -1).contiguous().requires_grad_()
    bias = torch.zeros(H, num_classes, device=x.device, requires_grad=True)
    rates = torch.tensor(config.rates, device=x.device) * batch / 256
    speeds = [torch.zeros_like(p) for p in (weight, bias)]
    for epoch in range(config.epochs):
        scale = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / config.epochs)).item())
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            logits = torch.einsum("bc,hkc->hbk", x[rows], weight) + bias[:, None]
            target = labels[rows].expand(H, -1).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), target, reduction="sum") / len(rows)
            gradients = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                for p, g, speed in zip((weight, bias), gradients, speeds, strict=True):
                    speed.mul_(0.9).add_(g)
                    p.sub_(speed * (scale * rates).view(-1, *[1] * (p.ndim - 1)))
    return weight.detach(), bias.detach()


def _hits(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, top: int) -> list[float]:
    """The share of images whose class is among the `top` highest logits, per classifier."""
    total = torch.zeros(len(weight), device=x.device)
    for rows, wanted in zip(x.split(4096), labels.split(4096), strict=True):
        logits = torch.einsum("bc,hkc->hbk", rows, weight) + bias[:, None]
        total += (logits.topk(top, dim=2).indices == wanted[None, :, None]).any(2).float().sum(1)
    shares: list[float] = (total / len(x)).tolist()
    return shares


def _both(backbone: Any) -> Any:
    """The embedding and the mean of the patch features, side by side (B, 2 C)."""

    def embed(images: Tensor) -> Tensor:
        return torch.cat((backbone(images), backbone.patch_features(images).mean((2, 3))), dim=1)

    return embed


def _of(features: Tensor, kind: str, width: int) -> Tensor:
    """The embedding alone, or with the mean of the patches, channel by channel in turn as in the authors' files."""
    if kind == "embedding":
        return features[:, :width]
    return torch.stack((features[:, :width], features[:, width:]), dim=2).flatten(1)


PROTOCOLS = {"linear": Linear}
