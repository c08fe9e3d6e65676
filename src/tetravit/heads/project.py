"""The projection head of DINO (Caron et al. 2021, arXiv:2104.14294): embeddings -> logits over prototypes.

An MLP, L2 normalisation, and a linear layer without bias whose rows are weight-normalised: w_k = g_k v_k / |v_k|.
Tensors have the names of the authors' checkpoints: `mlp.*`, `last_layer.weight_g`, `last_layer.weight_v`.

Shapes: R rows, C width of the embedding, D bottleneck, K prototypes.
Source of every number: facebookresearch/dino@7c446df vision_transformer.py.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.init import trunc_normal_

EPS = 1e-12  # epsilon of the L2 normalisation, computed in float32


class PrototypeLayer(nn.Module):
    """A weight-normalised linear layer D -> K without bias.

    weight_g (K, 1) norms, weight_v (K, D) directions. `normed`: norms are fixed at 1, without gradient.
    """

    def __init__(self, bottleneck: int, prototypes: int, *, last: Literal["normed", "free"]) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=last == "free")
        self.weight_v = nn.Parameter(nn.Linear(bottleneck, prototypes, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        directions = self.weight_v.float()
        weight = directions * (self.weight_g.float() / directions.norm(dim=1, keepdim=True))
        return F.linear(x, weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype))


class ProjectionHead(nn.Module):
    """Embeddings (R, C) -> logits (R, K), without temperature.

    Args:
        dim: C.
        prototypes: K.
        hidden: width between the layers of the MLP.
        bottleneck: D, width after the MLP.
        layers: linear layers of the MLP, at least 1.
        norm: `batch`: BatchNorm after each linear layer but the last.
        last: `normed`: the last layer has unit-norm rows; `free`: the norms are trained.

    Raises:
        ValueError: for a number below 1, or an unknown `norm` or `last`.
    """

    def __init__(
        self,
        dim: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm: Literal["none", "batch"] = "none",
        last: Literal["normed", "free"] = "normed",
    ) -> None:
        super().__init__()
        numbers = {"dim": dim, "prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck}
        for name, value in {**numbers, "layers": layers}.items():
            if value < 1:
                raise ValueError(f"{name} of a projection head is 1 or more; got {value}.")
        if norm not in ("none", "batch"):
            raise ValueError(f"norm of a projection head takes one of none, batch; got {norm!r}.")
        if last not in ("normed", "free"):
            raise ValueError(f"last of a projection head takes one of normed, free; got {last!r}.")
        self.prototypes = prototypes
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for i in range(layers):
            steps.append(nn.Linear(widths[i], widths[i + 1]))
            if i < layers - 1:
                steps += [nn.BatchNorm1d(hidden)] if norm == "batch" else []
                steps.append(nn.GELU())
        self.mlp = steps[0] if layers == 1 else nn.Sequential(*steps)
        self.last_layer = PrototypeLayer(bottleneck, prototypes, last=last)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation of the MLP: normal with standard deviation 0.02, zero biases."""
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = self.mlp(embeddings)
        x = F.normalize(x.float(), dim=-1, eps=EPS).to(x.dtype)
        return self.last_layer(x)
