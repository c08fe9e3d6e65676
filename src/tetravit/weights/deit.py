"""DeiT: how the authors' tensor names, which timm shares, become ours."""

from tetravit.weights.base import KeyMap, Rule

_NAMES = KeyMap(
    Rule("patch_embed.proj.{rest}", "backbone.patch_embed.{rest}"),
    Rule("pos_embed", "backbone.pos_embed.table"),
    Rule("cls_token", "backbone.cls_token.token"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)

LAYOUTS = {"deit": {"official": _NAMES, "timm": _NAMES}}
