"""Published checkpoints: which there are, how their tensors are named, how a file is read without trust."""

from tetravit.registry import discover
from tetravit.weights.base import KeyMap

LAYOUTS: dict[str, dict[str, KeyMap]] = discover(__name__, "LAYOUTS")  # {"xcit": {"official": ..., "timm": ...}}

__all__ = ["LAYOUTS", "KeyMap"]
