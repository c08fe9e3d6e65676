"""DINO-DETR in the naming of IDEA-Research/DINO; the backbone is `backbone.0`.

All decoder layers share one box head and one class head. Files store each twice per layer, under two names: reading
uses the first, writing repeats it.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from tetravit.weights.base import KeyMap, Rule

SHARED = re.compile(r"transformer\.decoder\.((?:bbox|class)_embed)\.0\.(.+)")
LAYER = re.compile(r"transformer\.decoder\.layers\.(\d+)\..+")


def repeated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The duplicate names of the tensors shared by all layers."""
    layers = {int(match[1]) for key in state if (match := LAYER.fullmatch(key))}
    copies: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if match := SHARED.fullmatch(key):
            head, rest = match.groups()
            copies |= {
                f"{start}{head}.{i}.{rest}": tensor for i in layers for start in ("transformer.decoder.", "")
            }
    return copies


KEY_MAPS = {
    "dino_detr": {
        "dino": KeyMap(
            Rule("transformer.{rest}", "head.transformer.{rest}"),
            Rule("label_enc.{p}", "head.label_enc.{p}"),
            Rule("input_proj.{i}.{j}.{p}", "head.input_proj.{i}.{j}.{p}"),
            dropped=(
                r"transformer\.decoder\.(bbox|class)_embed\.[1-9]\d*\..+",
                r"(bbox|class)_embed\.\d+\..+",
            ),
            derived=repeated,
            backbone="backbone.0.",
        )
    }
}
