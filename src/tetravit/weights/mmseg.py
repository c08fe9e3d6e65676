"""Segmentors as mmsegmentation names them: a backbone under its authors' names, neck and heads beside it."""

from collections.abc import Mapping

from torch import Tensor

from tetravit.registry import pick
from tetravit.weights.base import KeyMap, Rule
from tetravit.weights.mmdet import ADAPTERS, UNUSED, DenseMap


def _conv(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """A convolution with its norm."""
    return (
        Rule(f"{theirs}.conv.{{p}}", f"{ours}.conv.{{p}}"),
        Rule(f"{theirs}.bn.{{rest}}", f"{ours}.norm.{{rest}}"),
    )


_SCORES = (
    Rule("decode_head.conv_seg.{p}", "head.score.{p}"),
    Rule("auxiliary_head.conv_seg.{p}", "head.auxiliary.score.{p}"),
    *_conv("auxiliary_head.convs.0", "head.auxiliary.conv"),
)

HEAD_LAYOUTS = {
    "semantic_fpn": KeyMap(
        Rule("neck.lateral_convs.{i}.conv.{p}", "head.neck.inner_blocks.{i}.0.{p}"),
        Rule("neck.fpn_convs.{i}.conv.{p}", "head.neck.layer_blocks.{i}.0.{p}"),
        *_conv("decode_head.scale_heads.{i}.{j}", "head.levels.{i}.{j}"),
        *_SCORES,
    ),
    "upernet": KeyMap(
        *_conv("decode_head.psp_modules.{i}.1", "head.pools.{i}"),
        *_conv("decode_head.bottleneck", "head.bottleneck"),
        *_conv("decode_head.lateral_convs.{i}", "head.laterals.{i}"),
        *_conv("decode_head.fpn_convs.{i}", "head.smooth.{i}"),
        *_conv("decode_head.fpn_bottleneck", "head.fuse"),
        *_SCORES,
    ),
}


def segmentor_map(layouts: Mapping[str, Mapping[str, KeyMap]], family: str, head: str) -> DenseMap:
    """The names of a model of `family` with a menu `head`; `layouts` are those of the backbones.

    Raises:
        ValueError: if nobody published that head, or dense models of that family.
    """
    layout = pick(HEAD_LAYOUTS, head, "segmentation head with published weights")
    adapter = pick(ADAPTERS, family, "family with published dense models")
    return DenseMap(layouts[family]["official"], adapter, layout, UNUSED[family])


def num_classes(tensors: Mapping[str, Tensor]) -> int | None:
    """How many classes the scores in a segmentor's state dict, of either layout, tell apart; None: there are none."""
    ends = ("decode_head.conv_seg.weight", "head.score.weight")
    return next((len(value) for key, value in tensors.items() if key.endswith(ends)), None)


def has_auxiliary(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a segmentor's state dict, of either layout, holds an auxiliary head."""
    return any("auxiliary_head." in key or "head.auxiliary." in key for key in tensors)
