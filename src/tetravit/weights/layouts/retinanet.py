"""RetinaNet in mmdetection's naming."""

from tetravit.weights.base import KeyMap, Rule
from tetravit.weights.layouts.base import NECK

KEY_MAPS = {
    "retinanet": {
        "mmdet": KeyMap(
            Rule("neck.fpn_convs.3.conv.{p}", "head.neck.coarser.0.{p}"),
            Rule("neck.fpn_convs.4.conv.{p}", "head.neck.coarser.1.{p}"),
            *NECK,
            Rule("bbox_head.cls_convs.{i}.conv.{p}", "head.score_convs.{i}.{p}"),
            Rule("bbox_head.reg_convs.{i}.conv.{p}", "head.delta_convs.{i}.{p}"),
            Rule("bbox_head.retina_cls.{p}", "head.score.{p}"),
            Rule("bbox_head.retina_reg.{p}", "head.delta.{p}"),
        )
    }
}
