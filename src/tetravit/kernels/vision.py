"""torchvision's compiled operators without its slow Python import.

The Python package is imported where needed: for gradients, under autocast, and if the libraries are not at the paths
of this version of torchvision.

Shapes: N boxes, R regions, (H, W) pixels.
"""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RGB = 3  # torchvision's image mode RGB


@cache
def _loaded(*names: str) -> bool:
    """Load one of the libraries `names` of torchvision; False if none can be loaded."""
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
    """Whether to use the operators alone: torchvision is not imported, without gradients and autocast."""
    if "torchvision" in sys.modules or torch.is_grad_enabled() or torch.is_autocast_enabled():
        return False
    plain = not torch.are_deterministic_algorithms_enabled() and not torch.compiler.is_compiling()
    return plain and _loaded("_C_stable", "_C") and hasattr(torch.ops.torchvision, "nms")


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The rows of `boxes` (N, 4) kept by NMS, best first. See `torchvision.ops.nms`."""
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
    """Bytes (n,) uint8 of a JPEG -> upright RGB (3, H, W) uint8; None: no JPEG decoder in torchvision.

    Raises:
        RuntimeError: if the data cannot be decoded.
    """
    if not _loaded("image_stable", "image"):
        return None
    decode: Any = getattr(torch.ops.image, "decode_jpeg", None)
    return None if decode is None else decode(data, RGB, True)
