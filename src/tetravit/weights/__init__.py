"""Published checkpoints: catalogue, maps of tensor names, and safe readers."""

from tetravit.registry import discover
from tetravit.weights.base import Adapter, Checkpoint, KeyMap

# {"xcit": {"official": ..., "timm": ...}, ...} and {"xcit_nano_12_p16.in1k": ..., ...}
LAYOUTS: dict[str, dict[str, KeyMap]] = discover(__name__, "LAYOUTS")
ADAPTERS: dict[str, Adapter] = discover(__name__, "ADAPTERS")  # of families with published dense models
CHECKPOINTS: dict[str, Checkpoint] = discover(__name__, "CHECKPOINTS")

__all__ = ["ADAPTERS", "CHECKPOINTS", "LAYOUTS", "Checkpoint", "KeyMap"]
