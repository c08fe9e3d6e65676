"""Activations of a layer, and the gradient of a score with respect to them.

Shapes: B images, C channels, H W the grid of a layer, N = H * W, T prefix tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tetravit.backbones import Backbone
from tetravit.explainers.base import Map, Request, chosen
from tetravit.explainers.parts.targets import Target, target_of
from tetravit.explainers.parts.view import resampled
from tetravit.models import Model
from tetravit.models.base import DenseModel

Combine = Callable[
    [Tensor, Tensor], Tensor
]  # activations and gradients (C, H, W) -> a map (H, W) before its ReLU
EMPTY = "nothing in this layer supports the class"


@dataclass(frozen=True)
class Layer:
    """Activations of an image (C, H, W) and the gradient of the score with respect to them, on the CPU, float32."""

    name: str
    activations: Tensor
    gradients: Tensor
    stride: int
    centre: float


def cam(model: Model, images: Tensor, request: Request, combine: Combine, kind: str) -> list[Map]:
    """Class activation maps of the layers of a request, and where there are several their mean in front.

    The mean of the maps, each divided by its maximum, at the centres of the finest grid.
    """
    target = target_of(model, images, request)
    maps = []
    for layer in layers(model, images, target, request.layer):
        raw = combine(layer.activations, layer.gradients)
        details: dict[str, Any] = {"sum_before_relu": float(raw.sum()), "score": target.score}
        if not (raw > 0).any():
            details["note"] = EMPTY
        maps.append(
            Map(
                raw.relu(),
                kind,
                layer.name,
                stride=layer.stride,
                centre=layer.centre,
                target=target.name,
                box=target.place,
                details=details,
            )
        )
    if len(maps) == 1:
        return maps
    finest = min(maps, key=lambda m: m.stride)
    shares = [resampled(m, finest) / max(float(m.values.max()), 1e-12) for m in maps]
    mean = Map(
        torch.stack(shares).mean(dim=0),
        f"{kind}, mean over layers",
        ", ".join(m.layer for m in maps),
        stride=finest.stride,
        centre=finest.centre,
        normalised="the mean of maps whose largest value is 1",
        target=target.name,
        box=target.place,
        details={"score": target.score},
    )
    return [mean, *maps]


def layers(model: Model, images: Tensor, target: Target, layer: str | int | None) -> list[Layer]:
    """The layers of a request with their gradients; None: the deepest useful one, of dense models all four maps.

    Raises:
        ValueError: for a layer that does not exist or is not spatial.
    """
    images = images.detach().requires_grad_(True)  # weights may be frozen
    with torch.enable_grad():
        if isinstance(model, DenseModel):
            names = [f"feature_maps.{i}" for i in range(4)]
            wanted = chosen(names, layer, names)
            maps = model.backbone.feature_maps(target.padded(images))
            score = target.of_maps(maps)
            kept = [
                (name, maps[i], model.backbone.strides[i]) for i, name in enumerate(names) if name in wanted
            ]
        else:
            backbone = model.backbone
            names = [name for name, module in backbone.named_modules() if name and _has_output(module)]
            wanted = chosen(names, layer, [backbone.cam_layer])
            outputs, score = captured(backbone, wanted, lambda: target(images))
            kept = [(name, outputs[name], 0) for name in wanted if name in outputs]
            if missing := [name for name in wanted if name not in outputs]:
                raise ValueError(f"Layer {missing[0]!r} has no output of its own; its blocks have.")
    gradients = torch.autograd.grad(score.sum(), [x for _, x, _ in kept], allow_unused=True)
    candidates = []
    for (name, x, stride), gradient in zip(kept, gradients, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(x)
        side = (images.shape[2], images.shape[3])
        if not stride:
            x, stride = as_map(model.backbone, name, x.detach(), side)
            gradient, _ = as_map(model.backbone, name, gradient, side)
        centre = model.backbone.centre(stride)
        candidates.append(Layer(name, x.detach()[0].float().cpu(), gradient[0].float().cpu(), stride, centre))
    return candidates


def captured(
    backbone: Backbone, names: Sequence[str], run: Callable[[], Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """The outputs of some modules while `run` runs, and what it returns."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = backbone.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        return outputs, run()


@contextmanager
def explicit_attention(backbone: Backbone, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, some layers form their weights in full, and these are kept by name, with gradients.

    For layers with `attention(*inputs)`, `values(*inputs)` and `proj`.
    """
    weights: dict[str, Tensor] = {}

    def forward(name: str, attn: Any) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            weights[name] = attn.attention(*inputs)  # (B, heads, T + N, T + N), or only the class token's row
            rows = weights[name] if weights[name].ndim == 4 else weights[name][:, :, None]
            return attn.proj((rows @ attn.values(*inputs)).transpose(1, 2).flatten(2))

        return run

    modules: dict[str, Any] = {name: backbone.get_submodule(name) for name in names}
    try:
        for name, attn in modules.items():
            attn.forward = forward(name, attn)
        yield weights
    finally:
        for attn in modules.values():
            attn.__dict__.pop("forward", None)


def as_map(backbone: Backbone, name: str, x: Tensor, sides: tuple[int, int]) -> tuple[Tensor, int]:
    """The output of a layer for images of (Hi, Wi) -> its map (B, C, H, W), and its stride.

    Prefix tokens are removed. Layouts: (B, C, H, W), (B, H, W, C), tokens (B, T + N, C), windows (B, windows, w * w,
    C).

    Raises:
        ValueError: for any other output.
    """
    for stride in dict.fromkeys((*backbone.strides, *(2**i for i in range(1, 6)))):
        up, down = tuple(-(-side // stride) for side in sides), tuple(side // stride for side in sides)
        for grid in (up, down):
            if x.ndim == 4 and x.shape[1:3] == grid:
                return x.permute(0, 3, 1, 2), stride
            if x.ndim == 4 and x.shape[2:4] == grid:
                return x, stride
            if x.ndim == 3 and x.shape[1] - grid[0] * grid[1] in (0, backbone.num_prefix):
                prefix = x.shape[1] - grid[0] * grid[1]
                return x[:, prefix:].mT.unflatten(2, grid), stride
            side = math.isqrt(x.shape[2]) if x.ndim == 4 else 1
            cut = (grid[0] // side, grid[1] // side)  # rows and columns of windows
            if x.ndim == 4 and tuple(x.shape[1:3]) == (cut[0] * cut[1], side * side):
                x = x.unflatten(2, (side, side)).unflatten(1, cut)  # (B, rows, columns, w, w, C)
                return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3), stride
    raise ValueError(f"Layer {name!r} has no map: its output is {tuple(x.shape)}.")


def _has_output(module: nn.Module) -> bool:
    """Whether a module may be called: not a container of modules."""
    return not isinstance(module, nn.ModuleList)
