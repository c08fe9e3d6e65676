"""Gradient clipping: by the global norm, or per parameter."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

ClipBy = Literal["global", "each"]
EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def clipped(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    clip: float,
    clip_by: ClipBy = "global",
    joint: Sequence[Sequence[Tensor]] = (),
) -> Tensor:
    """Clip the gradients in place; returns their global norm before clipping.

    Args:
        parameters: the trainable parameters.
        gradients: of `parameters`, where not None.
        clip: maximum norm; 0: no clipping.
        clip_by: `global`: one norm over all parameters; `each`: every parameter has its own norm and factor min(1,
            clip / (norm + 1e-6)), as in the code of DINO (arXiv:2104.14294).
        joint: lists of parameters that share one norm and factor if `clip_by` is `each`.
    """
    if clip_by == "global" or clip <= 0:
        norm = nn.utils.get_total_norm(gradients)
        if clip > 0:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        return norm
    norms = dict(zip(map(id, gradients), torch._foreach_norm(list(gradients)), strict=True))
    total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    for group in joint:
        together = [p.grad for p in group if p.grad is not None]
        if together:
            norm = torch.linalg.vector_norm(torch.stack([norms[id(g)] for g in together]))
            norms |= {id(g): norm for g in together}
    factors = torch.clamp(clip / (torch.stack([norms[id(g)] for g in gradients]) + EPS), max=1.0)
    for gradient, factor in zip(gradients, factors, strict=True):
        gradient.mul_(factor)
    return total
