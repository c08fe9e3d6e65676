"""The inputs and the bounds of the goldens in this folder; README.md says how each array was made."""

import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from dense import weights
from torch import Tensor

HERE = Path(__file__).parent
SIZES = torch.tensor([[256, 320], [200, 272]])  # true sizes on a canvas of 256 x 320


def rand(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(weights.rng(name).random(shape).astype(np.float32))


def randn(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(weights.rng(name).standard_normal(shape).astype(np.float32))


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(weights.value(key, shape))


def ring(heads: int, levels: int, points: int) -> Tensor:
    """In float64, then rounded: sin(pi) of float32 alone moves all points of a head by 4e-7 pixels."""
    angle = np.arange(heads) * (2 * np.pi / heads)
    ray = np.stack((np.cos(angle), np.sin(angle)), axis=-1)
    ray = ray / np.abs(ray).max(axis=-1, keepdims=True)
    steps = np.arange(1, points + 1)[:, None]
    points_of = np.broadcast_to(ray[:, None, None] * steps, (heads, levels, points, 2))
    return torch.from_numpy(points_of.reshape(-1).astype(np.float32))


def boxes(u: Tensor) -> Tensor:
    """Numbers in 0..1 (n, 4) -> cx cy w h."""
    return torch.cat((0.25 + 0.5 * u[:, :2], 0.1 + 0.3 * u[:, 2:]), dim=1)


def small_boxes(u: Tensor) -> Tensor:
    """The same for the boxes of single parts."""
    return torch.cat((0.2 + 0.6 * u[:, :2], 0.05 + 0.4 * u[:, 2:]), dim=1)


def targets(
    tag: str = "dino_detr:targets", counts: tuple[int, ...] = (3, 1)
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels and boxes per image."""
    total = sum(counts)
    box = boxes(rand(f"{tag}:boxes", (total, 4)))
    label = torch.from_numpy(weights.rng(f"{tag}:labels").integers(0, 91, total))
    return list(label.split(counts)), list(box.split(counts))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=math.prod(shape))
    return torch.from_numpy(bits.reshape(shape).astype(bool))


class Golden:
    """The arrays of a file, and how far a correct implementation may be from them."""

    def __init__(self, name: str) -> None:
        self.arrays = dict(np.load(HERE / f"{name}.npz"))
        self.meta = json.loads((HERE / f"{name}.json").read_text())

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def bound(self, key: str) -> float:
        """The larger of what another order of summation and float64 came to in the authors' code."""
        kinds = [self.meta["bounds"][kind].get(key) for kind in ("alt_order_vs_ref", "float64_vs_ref")]
        return max(row["max_abs"] for row in kinds if row is not None)

    def slack(self, key: str) -> float:
        """For float32: such a figure is one sample of the largest rounding error, and so is ours."""
        rows = self.meta["bounds"]["float64_vs_ref"]
        return max(4 * self.bound(key), 2e-6 * rows[key]["max_ref"] if key in rows else 0.0, 1e-6)

    def check(self, key: str, got: Tensor) -> None:
        """float64 is compared within the bound of the file, float32 within `slack`."""
        want = self[key]
        bound = 1.01 * self.bound(key) if got.dtype == torch.float64 else self.slack(key)
        assert got.shape == want.shape, (key, got.shape, want.shape)
        if not want.is_floating_point():
            assert torch.equal(got.to(want.dtype), want), key
            return
        same = (got == want) | ((got - want).abs() <= bound)  # infinities are equal
        assert same.all(), (key, (got - want).abs().max().item(), bound)


def authors_state() -> dict[str, Tensor]:
    """The state dict of the authors' model that the goldens of `detr` were made with."""
    shapes = json.loads((HERE / "detr_params.json").read_text())["state_dict"]
    gains = json.loads((HERE / "detr.json").read_text())["gains"]
    state = {}
    for key, shape in shapes.items():
        shared = re.sub(r"^(transformer\.decoder\.)?((?:bbox|class)_embed)\.\d+\.", r"\2.0.", key)
        tensor = value(shared, tuple(shape))
        for pattern, factor in gains:
            if re.search(pattern, shared):
                tensor = tensor * factor
        if shared in ("class_embed.0.bias", "transformer.enc_out_class_embed.bias"):
            tensor = tensor - 4.0
        if key.endswith("sampling_offsets.bias"):
            tensor = tensor + ring(8, 4, 4)
        state[key] = tensor
    return state


def maps() -> list[Tensor]:
    """Maps at strides 4 (which nobody uses), 8, 16, 32 on the canvas."""
    shapes = [(c, 256 // s, 320 // s) for c, s in ((128, 8), (256, 16), (512, 32))]
    return [torch.zeros(2, 64, 64, 80)] + [
        randn(f"dino_detr:feat{i}", (2, *shape)) for i, shape in enumerate(shapes)
    ]
