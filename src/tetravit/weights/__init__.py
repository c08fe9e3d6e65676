"""Published checkpoints: which there are, how their tensors are named, how a file is read without trust."""

from tetravit.registry import discover
from tetravit.weights.base import Checkpoint, KeyMap

# {"xcit": {"official": ..., "timm": ...}, ...} and {"xcit_nano_12_p16.in1k": ..., ...}
LAYOUTS: dict[str, dict[str, KeyMap]] = discover(__name__, "LAYOUTS")
CHECKPOINTS: dict[str, Checkpoint] = discover(__name__, "CHECKPOINTS")

__all__ = ["CHECKPOINTS", "LAYOUTS", "Checkpoint", "KeyMap"]
