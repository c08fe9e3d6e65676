"""What the authors' classification models answer, and how to ask ours the same."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import weights  # tests/golden/weights.py
from torch import Tensor

GOLDEN = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """What the authors' model answers for weights derived from tensor names."""

    model: str
    official_name: str
    wrapper: str | None
    params: int
    keys: dict[str, tuple[int, ...]]
    sizes: list[tuple[int, int]]
    answers: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        """The checkpoint, in the authors' layout, unwrapped."""
        keys = {k: s for k, s in self.keys.items() if not k.endswith("relative_position_index")}
        return {k: torch.from_numpy(np.asarray(weights.tensor(k, s))).to(_dtype(k)) for k, s in keys.items()}

    def images(self, size: tuple[int, int]) -> Tensor:
        return torch.from_numpy(weights.image(self.official_name, 2, *size))

    def answer(self, kind: str, size: tuple[int, int]) -> Tensor:
        """`kind`: features or logits."""
        return self.answers[f"{kind}_{size[0]}x{size[1]}"]


def _dtype(key: str) -> torch.dtype:
    return torch.int64 if key.endswith("num_batches_tracked") else torch.float32


def golden(name: str) -> Golden:
    """The golden called `name` (one of `golden_names()`)."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    arrays = np.load(GOLDEN / f"{name}.npz")
    sizes = sorted({tuple(map(int, key.rsplit("_", 1)[1].split("x"))) for key in arrays.files})
    return Golden(
        model=meta["model"],
        official_name=meta["official_name"],
        wrapper=meta["wrapper"],
        params=meta["params"],
        keys={key: tuple(shape) for key, shape in dict(meta["keys"]).items()},
        sizes=sizes,
        answers={key: torch.from_numpy(arrays[key]) for key in arrays.files},
    )


def golden_names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.npz"))
