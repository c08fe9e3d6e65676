"""The goldens of DINO as tests read them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
BOUND = 2e-5  # of the largest value


@cache
def meta() -> dict[str, Any]:
    """Settings, scalars and lists of keys."""
    return json.loads((FOLDER / "ssl.json").read_text())


@cache
def _arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "ssl.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def golden(key: str) -> Tensor:
    """A recorded array."""
    return torch.from_numpy(_arrays()[key].copy())


def names(prefix: str) -> list[str]:
    return [key for key in _arrays() if key.startswith(prefix)]


def check(key: str, value: Tensor | np.ndarray, bound: float = BOUND) -> None:
    """`value` is the recorded array, to `bound` of its largest value."""
    got, want = torch.as_tensor(value).detach().double(), golden(key).double()
    assert got.shape == want.shape, f"{key}: {tuple(got.shape)}, not {tuple(want.shape)}"
    largest = want[want.isfinite()].abs().max().item()
    torch.testing.assert_close(
        got, want, atol=bound * largest, rtol=0, equal_nan=True, msg=lambda m: f"{key}: {m}"
    )


def tensors(state: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
