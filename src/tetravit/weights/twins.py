"""Twins: how the authors' tensor names become ours. timm keeps them."""

from tetravit.weights.base import KeyMap, Rule

_OFFICIAL = KeyMap(
    Rule("pos_block.{i}.proj.0.{p}", "backbone.pos_embeds.{i}.proj.{p}"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)

LAYOUTS = {"twins": {"official": _OFFICIAL, "timm": _OFFICIAL}}
