"""The dense goldens as tests read them."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from dense import weights
from torch import Tensor

FOLDER = Path(__file__).parent


class DenseGolden:
    """What the authors' detector or segmentor answers for weights derived from tensor names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.meta = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The checkpoint in the authors' layout, index buffers left out."""
        keys = {k: s for k, s in self.meta["keys"].items() if not k.endswith("relative_position_index")}
        floats = {k: s for k, s in keys.items() if not k.endswith("num_batches_tracked")}
        counters = {k: torch.zeros(s, dtype=torch.int64) for k, s in keys.items() if k not in floats}
        values = weights.state_dict(floats, self.name)
        return {k: counters[k] if k in counters else torch.from_numpy(values[k]) for k in keys}

    def check_slice(self, key: str, value: Tensor, bound: float = 1e-4) -> None:
        """`value` has the recorded shape and, in the recorded slice, the recorded numbers."""
        summary = self.meta["summary"][key]
        assert list(value.shape) == summary["shape"], key
        got = eval(f"value{summary['slice']}", {"value": value})
        torch.testing.assert_close(got, self[f"slice/{key}"], atol=bound, rtol=0, msg=lambda m: f"{key}: {m}")
        assert abs(value.float().mean().item() - summary["mean"]) < bound
        assert abs(value.abs().max().item() - summary["absmax"]) < bound * max(1, summary["absmax"])


def units() -> dict[str, Tensor]:
    """The answers of single parts (units.json says what each is)."""
    with np.load(FOLDER / "units.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def image(tag: str, height: int, width: int) -> Tensor:
    """(3, height, width), already normalised."""
    return torch.from_numpy(weights.image(tag, height, width))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bits as numpy packs them -> bool array of `shape`."""
    bits = np.unpackbits(packed.numpy())[: int(np.prod(shape))]
    return torch.from_numpy(bits.reshape(shape).astype(bool))


def inscribed_ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """The masks of the goldens' objects: the ellipse in each box (M, 4), at pixel centres. bool (M, H, W)."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    return ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
