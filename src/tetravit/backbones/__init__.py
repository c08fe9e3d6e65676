"""Image backbones, one family per file. How to add one: ARCHITECTURE.md, "Where do I add ...?"."""

from tetravit.backbones.base import Backbone
from tetravit.registry import discover

VARIANTS = discover(__name__, "VARIANTS")  # {"xcit_small_12_p16": partial(XCiT, ...), ...}
ALIASES: dict[str, str] = discover(__name__, "ALIASES")  # {"alt_gvt_small": "twins_svt_small", ...}

__all__ = ["ALIASES", "VARIANTS", "Backbone"]
