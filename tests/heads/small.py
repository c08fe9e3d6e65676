"""A narrow head of every kind with numbers that need no file: weights and maps are waves."""

import torch
from torch import Tensor, nn

from tetravit.heads import HEADS
from tetravit.structures import Target

STRIDES, CHANNELS = (4, 8, 16, 32), (8, 12, 16, 20)
SIZES = torch.tensor([[64, 96], [60, 40]])
OPTIONS = {
    "cascade": {"width": 8, "max_detections": 9, "num_candidates": 40, "num_proposals": 30},
    "mask_rcnn": {"width": 8, "max_detections": 9, "num_candidates": 40, "num_proposals": 30},
    "retinanet": {"width": 8, "max_detections": 9, "num_candidates": 40},
    "semantic_fpn": {"width": 8, "dropout": 0.0},
    "upernet": {"width": 8, "dropout": 0.0},
}


def wave(*shape: int, start: int = 0) -> Tensor:
    """Numbers in (-1, 1) that differ everywhere."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(start, start + count, dtype=torch.float64) * 1.7).float().reshape(shape)


def build(name: str) -> nn.Module:
    head = HEADS[name](CHANNELS, STRIDES, num_classes=3, **OPTIONS[name]).eval()
    with torch.no_grad():
        for i, parameter in enumerate(head.parameters()):
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.copy_(wave(*parameter.shape, start=97 * i) * (2 / fan) ** 0.5)
        for key, parameter in head.named_parameters():
            if "delta" in key:
                parameter.mul_(0.1)
    return head


def maps() -> list[Tensor]:
    return [wave(2, c, 64 // s, 96 // s, start=c) for c, s in zip(CHANNELS, STRIDES, strict=True)]


def targets() -> list[Target]:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 90.0, 60.0]])
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 10:40, 8:30], masks[1, 20:50, 40:80] = True, True
    return [
        Target(boxes, torch.tensor([2, 0]), masks),
        Target(boxes[:1, :] * 0.5, torch.tensor([1]), masks[:1]),
    ]


def labels() -> Tensor:
    found = (torch.arange(64)[:, None] // 16 + torch.arange(96) // 24) % 3
    found[:4] = 255
    return found.expand(2, 64, 96).contiguous()


def figures(name: str) -> dict[str, list[float]]:
    """Losses, and sums over what is decoded, of the small head."""
    head, given = build(name), maps()
    torch.randperm, kept = (lambda n, device=None: torch.arange(n, device=device)), torch.randperm
    try:
        with torch.no_grad():
            if name in ("semantic_fpn", "upernet"):
                logits = head(given)
                losses = head.loss(logits, labels())
                decoded = head.decode(logits, [(50, 70), (64, 96)], (64, 96))
                numbers = [
                    float(torch.bincount(x.flatten(), minlength=3)[k]) for x in decoded for k in range(3)
                ]
                return {
                    "loss": [x.item() for x in losses.values()],
                    "decoded": numbers,
                    "logits": [logits.abs().mean().item()],
                }
            outputs = head(given)
            losses = head.loss(outputs, targets(), SIZES)
            head.score_threshold = 0.0
            boxes, scores, classes, valid = head.decode(outputs, SIZES)
            found = {"loss": [x.item() for x in losses.values()], "valid": [float(valid.sum())]}
            found |= {"boxes": boxes[valid].mean(0).tolist(), "scores": scores[0, :5].tolist()}
            found["labels"] = [float(classes[valid].sum())]
            if head.has_masks:
                found["masks"] = [head.mask_probabilities(outputs, boxes, classes)[valid].mean().item()]
            return found
    finally:
        torch.randperm = kept
