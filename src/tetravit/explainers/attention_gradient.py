"""Attention times gradient: which patches the class token's attention takes the class from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tetravit.explainers.base import Map, Method, Request, chosen

if TYPE_CHECKING:
    from tetravit.models import Model


def attention_gradient(model: Model, images: Any, request: Request) -> list[Map]:
    """Mean over heads of the positive part of weight times gradient of the class's logit (H, W).

    Uses the class token's row of the last layer; for XCiT the sum of both class blocks. One backward pass.
    """
    import torch

    from tetravit.explainers.parts.gradients import explicit_attention
    from tetravit.explainers.parts.records import layers_of
    from tetravit.explainers.parts.targets import target_of

    backbone = model.backbone
    names = layers_of(model, ("class",))
    layers = chosen(names, request.layer, names[-1:] if "self" in backbone.attention_kinds else names)
    target = target_of(model, images, request)
    with torch.enable_grad(), explicit_attention(backbone, layers) as weights:
        score = target(images.detach().requires_grad_(True))
        gradients = torch.autograd.grad(score.sum(), [weights[name] for name in layers])
    grid = backbone.grid(images.shape[2], images.shape[3])
    total = torch.zeros(grid)
    for name, gradient in zip(layers, gradients, strict=True):
        product = (weights[name] * gradient).detach().relu()[0].float().cpu()
        row = product[:, 0, backbone.num_prefix :] if product.ndim == 3 else product[:, 1:]
        total += row.mean(dim=0).unflatten(0, grid)
    stride = backbone.strides[-1]
    return [
        Map(
            total,
            "attention x gradient",
            ", ".join(layers),
            stride=stride,
            centre=backbone.centre(stride),
            target=target.name,
            details={"score": target.score},
        )
    ]


EXPLAIN = {
    "attention-gradient": Method(
        "Attention of the class token times the gradient of a class (ConViT, DeiT, XCiT).",
        attention_gradient,
        kinds=("classify",),
        attention=("class",),
        takes=("layer", "class"),
        why_not=lambda b: "" if "class" in b.attention_kinds else "it has no class token",
        needs_gradients=True,
        source="after Chefer et al. 2021, arXiv:2103.15679; the form for class attention is defined here",
    )
}
