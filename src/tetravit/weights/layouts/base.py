"""Detectors and segmenters in OpenMMLab's naming: the backbone under its authors' names, with neck and heads."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tetravit.weights.base import Adapter, KeyMap, Rule

BACKBONE = "backbone."  # prefix of our backbone names
ADAPTED = ("pyramid.", "backbone.stage_norms.")  # prefixes of our adapter names

NECK = (
    Rule("neck.lateral_convs.{i}.conv.{p}", "head.neck.inner_blocks.{i}.0.{p}"),
    Rule("neck.fpn_convs.{i}.conv.{p}", "head.neck.layer_blocks.{i}.0.{p}"),
)
PROPOSALS = (
    Rule("rpn_head.rpn_conv.{p}", "head.rpn.conv.{p}"),
    Rule("rpn_head.rpn_cls.{p}", "head.rpn.score.{p}"),
    Rule("rpn_head.rpn_reg.{p}", "head.rpn.delta.{p}"),
)


def branches(number: str, ours: str) -> tuple[Rule, ...]:
    """Box and mask branch of one RoI stage; `number`: its index in mmdet's names, `ours`: in our names."""
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


def conv(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """A convolution with its norm, in mmsegmentation's naming."""
    return (
        Rule(f"{theirs}.conv.{{p}}", f"{ours}.conv.{{p}}"),
        Rule(f"{theirs}.bn.{{rest}}", f"{ours}.norm.{{rest}}"),
    )


SCORES = (  # classifiers of a segmentation head and its auxiliary head
    Rule("decode_head.conv_seg.{p}", "head.score.{p}"),
    Rule("auxiliary_head.conv_seg.{p}", "head.auxiliary.score.{p}"),
    *conv("auxiliary_head.convs.0", "head.auxiliary.conv"),
)


@dataclass(frozen=True)
class DenseMap:
    """Name map of a whole dense model, in both directions: backbone, adapter and head."""

    backbone: KeyMap
    adapter: Adapter
    head: KeyMap

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of our names that such checkpoints lack, because only classification uses them."""
        return self.adapter.unused

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict from the authors' layout to ours; an unused classifier is dropped."""
        start = self.head.backbone
        inner = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        inner = self.adapter.names.to_ours({k: v for k, v in inner.items() if not k.startswith("head.")})
        adapter = {k: v for k, v in inner.items() if k.startswith(ADAPTED)}
        backbone = self.backbone.to_ours({k: v for k, v in inner.items() if k not in adapter})
        head = self.head.to_ours({k: v for k, v in state.items() if not k.startswith(start)})
        return {**backbone, **adapter, **head}

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict from our layout to the authors', without tensors used only in classification."""
        state = {k: v for k, v in state.items() if not k.startswith(self.unused)}
        adapter = {k: v for k, v in state.items() if k.startswith(ADAPTED)}
        backbone = {k: v for k, v in state.items() if k.startswith(BACKBONE) and k not in adapter}
        inner = {**self.backbone.to_theirs(backbone), **self.adapter.names.to_theirs(adapter)}
        head = self.head.to_theirs({k: v for k, v in state.items() if k.startswith("head.")})
        return {**{self.head.backbone + k: v for k, v in inner.items()}, **head}
