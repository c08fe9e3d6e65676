"""Detectors and segmentors as OpenMMLab names them: a backbone under its authors' names, neck and heads beside it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tetravit.registry import pick
from tetravit.weights.base import KeyMap, Rule

BACKBONE = "backbone."
ADAPTED = ("pyramid.", "backbone.stage_norms.")  # how our names of adapters begin

# The authors' adapters from backbone to pyramid, which sit in their backbones.
ADAPTERS = {
    "xcit": KeyMap(
        Rule("fpn1.{rest}", "pyramid.levels.0.{rest}"),
        Rule("fpn2.{rest}", "pyramid.levels.1.{rest}"),
    ),
    "gcvit": KeyMap(Rule("norm{i}.{p}", "pyramid.norms.{i}.{p}")),
    "twins": KeyMap(Rule("norm_list.{i}.{p}", "backbone.stage_norms.{i}.{p}")),
}

# What our backbones hold for classification only, and dense checkpoints leave out.
UNUSED = {
    "xcit": ("backbone.cls_token", "backbone.class_blocks.", "backbone.norm."),
    "gcvit": ("backbone.norm.",),
    "twins": ("backbone.norm.",),
}

_NECK = (
    Rule("neck.lateral_convs.{i}.conv.{p}", "head.neck.inner_blocks.{i}.0.{p}"),
    Rule("neck.fpn_convs.{i}.conv.{p}", "head.neck.layer_blocks.{i}.0.{p}"),
)
_PROPOSALS = (
    Rule("rpn_head.rpn_conv.{p}", "head.rpn.conv.{p}"),
    Rule("rpn_head.rpn_cls.{p}", "head.rpn.score.{p}"),
    Rule("rpn_head.rpn_reg.{p}", "head.rpn.delta.{p}"),
)


def _branches(number: str, ours: str) -> tuple[Rule, ...]:
    """The box and the mask branch of one look; `number` is how mmdet counts it."""
    box, mask = f"roi_head.bbox_head{number}", f"roi_head.mask_head{number}"
    return (
        Rule(f"{box}.fc_cls.{{p}}", f"head.boxes.{ours}.score.{{p}}"),
        Rule(f"{box}.fc_reg.{{p}}", f"head.boxes.{ours}.delta.{{p}}"),
        Rule(f"{box}.shared_fcs.{{j}}.{{p}}", f"head.boxes.{ours}.layers.{{j}}.{{p}}"),
        Rule(f"{box}.shared_convs.{{j}}.conv.{{p}}", f"head.boxes.{ours}.convs.{{j}}.0.{{p}}"),
        Rule(f"{box}.shared_convs.{{j}}.bn.{{rest}}", f"head.boxes.{ours}.convs.{{j}}.1.{{rest}}"),
        Rule(f"{mask}.convs.{{j}}.conv.{{p}}", f"head.masks.{ours}.convs.{{j}}.{{p}}"),
        Rule(f"{mask}.upsample.{{p}}", f"head.masks.{ours}.upsample.{{p}}"),
        Rule(f"{mask}.conv_logits.{{p}}", f"head.masks.{ours}.score.{{p}}"),
    )


HEAD_LAYOUTS = {
    "retinanet": {
        "mmdet": KeyMap(
            Rule("neck.fpn_convs.3.conv.{p}", "head.neck.coarser.0.{p}"),
            Rule("neck.fpn_convs.4.conv.{p}", "head.neck.coarser.1.{p}"),
            *_NECK,
            Rule("bbox_head.cls_convs.{i}.conv.{p}", "head.score_convs.{i}.{p}"),
            Rule("bbox_head.reg_convs.{i}.conv.{p}", "head.delta_convs.{i}.{p}"),
            Rule("bbox_head.retina_cls.{p}", "head.score.{p}"),
            Rule("bbox_head.retina_reg.{p}", "head.delta.{p}"),
        )
    },
    "mask_rcnn": {"mmdet": KeyMap(*_NECK, *_PROPOSALS, *_branches("", "0"))},
    "cascade": {"mmdet": KeyMap(*_NECK, *_PROPOSALS, *_branches(".{i}", "{i}"))},
}


@dataclass(frozen=True)
class DenseMap:
    """Names of a whole dense model, in both directions: those of its family, its adapter and its head.

    unused: beginnings of our names that such checkpoints lack, because only classification needs them.
    """

    backbone: KeyMap
    adapter: KeyMap
    head: KeyMap
    unused: tuple[str, ...] = ()

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in OpenMMLab's layout -> the same in ours; an unused classifier is left out."""
        inner = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
        inner = self.adapter.to_ours({k: v for k, v in inner.items() if not k.startswith("head.")})
        adapter = {k: v for k, v in inner.items() if k.startswith(ADAPTED)}
        backbone = self.backbone.to_ours({k: v for k, v in inner.items() if k not in adapter})
        head = self.head.to_ours({k: v for k, v in state.items() if not k.startswith(BACKBONE)})
        return {**backbone, **adapter, **head}

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in our layout -> the same in OpenMMLab's, without what only classification needs."""
        state = {k: v for k, v in state.items() if not k.startswith(self.unused)}
        adapter = {k: v for k, v in state.items() if k.startswith(ADAPTED)}
        backbone = {k: v for k, v in state.items() if k.startswith(BACKBONE) and k not in adapter}
        inner = {**self.backbone.to_theirs(backbone), **self.adapter.to_theirs(adapter)}
        head = self.head.to_theirs({k: v for k, v in state.items() if k.startswith("head.")})
        return {**{BACKBONE + k: v for k, v in inner.items()}, **head}


def dense_map(layouts: Mapping[str, Mapping[str, KeyMap]], family: str, head: str) -> DenseMap:
    """The names of a model of `family` with a menu `head`; `layouts` are those of the backbones.

    Raises:
        ValueError: if nobody published that head, or dense models of that family.
    """
    heads = pick(HEAD_LAYOUTS, head, "head with published weights")
    adapter = pick(ADAPTERS, family, "family with published dense models")
    (layout,) = heads.values()
    return DenseMap(layouts[family]["official"], adapter, layout, UNUSED[family])
