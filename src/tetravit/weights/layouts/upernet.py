"""UPerNet in mmsegmentation's naming."""

from tetravit.weights.base import KeyMap
from tetravit.weights.layouts.base import SCORES, conv

KEY_MAPS = {
    "upernet": {
        "mmseg": KeyMap(
            *conv("decode_head.psp_modules.{i}.1", "head.pools.{i}"),
            *conv("decode_head.bottleneck", "head.bottleneck"),
            *conv("decode_head.lateral_convs.{i}", "head.laterals.{i}"),
            *conv("decode_head.fpn_convs.{i}", "head.smooth.{i}"),
            *conv("decode_head.fpn_bottleneck", "head.fuse"),
            *SCORES,
        )
    }
}
