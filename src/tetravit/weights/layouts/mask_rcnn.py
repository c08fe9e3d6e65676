"""Mask R-CNN in mmdetection's naming."""

from tetravit.weights.base import KeyMap
from tetravit.weights.layouts.base import NECK, PROPOSALS, branches

KEY_MAPS = {"mask_rcnn": {"mmdet": KeyMap(*NECK, *PROPOSALS, *branches("", "0"))}}
