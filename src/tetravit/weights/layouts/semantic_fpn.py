"""Semantic FPN in mmsegmentation's naming."""

from tetravit.weights.base import KeyMap
from tetravit.weights.layouts.base import NECK, SCORES, conv

KEY_MAPS = {
    "semantic_fpn": {
        "mmseg": KeyMap(*NECK, *conv("decode_head.scale_heads.{i}.{j}", "head.levels.{i}.{j}"), *SCORES)
    }
}
