"""Cascade Mask R-CNN as mmdetection names it."""

from tetravit.weights.base import KeyMap
from tetravit.weights.layouts.base import NECK, PROPOSALS, branches

KEY_MAPS = {"cascade": {"mmdet": KeyMap(*NECK, *PROPOSALS, *branches(".{i}", "{i}"))}}
