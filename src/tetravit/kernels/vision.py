"""torchvision's compiled operators without its Python, which loads longer than all else that a prediction needs.

Its Python is loaded where it is needed all the same: for gradients, under autocast, and where the libraries are not
where this version of torchvision has them.

Shapes: N boxes, R regions, (H, W) pixels.
"""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RGB = 3  # torchvision's number of the mode


@cache
def _loaded(*names: str) -> bool:
    """Load one of the libraries `names` of torchvision; False: there is none that loads."""
    spec = importlib.util.find_spec("torchvision")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for name in names:
        for file in (file for folder in folders for file in sorted(Path(folder).glob(f"{name}.*"))):
            if file.suffix in (".so", ".pyd", ".dylib"):
                try:
                    torch.ops.load_library(str(file))
                    return True
                except OSError:
                    pass
    return False


def _bare() -> bool:
    """Whether the operators alone do: torchvision is not loaded, and neither gradients nor autocast are wanted."""
    if "torchvision" in sys.modules or torch.is_grad_enabled() or torch.is_autocast_enabled():
        return False
    plain = not torch.are_deterministic_algorithms_enabled() and not torch.compiler.is_compiling()
    return plain and _loaded("_C_stable", "_C") and hasattr(torch.ops.torchvision, "nms")


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The rows of `boxes` (N, 4) that survive, best first. See `torchvision.ops.nms`."""
    if _bare():
        kept: Tensor = torch.ops.torchvision.nms(boxes, scores, threshold)
        return kept
    from torchvision import ops

    return ops.nms(boxes, scores, threshold)


def roi_align(x: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    """Maps (B, C, H, W) and regions (R, 5) -> (R, C, size, size), aligned. See `torchvision.ops.roi_align`."""
    if _bare():
        pooled: Tensor = torch.ops.torchvision.roi_align(x, regions, scale, size, size, -1, True)
        return pooled
    from torchvision import ops

    return ops.roi_align(x, regions, size, scale, sampling_ratio=-1, aligned=True)


def decode_jpeg(data: Tensor) -> Tensor | None:
    """Bytes (n,) uint8 of a JPEG -> RGB (3, H, W) uint8, turned upright; None: torchvision decodes none.

    Raises:
        RuntimeError: if the data does not decode.
    """
    if not _loaded("image_stable", "image"):
        return None
    decode: Any = getattr(torch.ops.image, "decode_jpeg", None)
    return None if decode is None else decode(data, RGB, True)
