"""XCiT: how the authors' and timm's tensor names become ours."""

from tetravit.weights.base import KeyMap, Rule

_SHARED = (
    Rule("patch_embed.proj.{rest}", "backbone.patch_embed.{rest}"),
    Rule("blocks.{i}.local_mp.bn.{rest}", "backbone.blocks.{i}.local.norm.{rest}"),
    Rule("blocks.{i}.local_mp.{rest}", "backbone.blocks.{i}.local.{rest}"),
    Rule("cls_attn_blocks.{i}.{rest}", "backbone.class_blocks.{i}.{rest}"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)
_Q_KV = {"backbone.class_blocks.{i}.attn.q.{p}": 1, "backbone.class_blocks.{i}.attn.kv.{p}": 2}

LAYOUTS = {
    "xcit": {
        "official": KeyMap(
            Rule("pos_embeder.token_projection.{p}", "backbone.pos_embed.proj.{p}"),
            Rule("cls_attn_blocks.{i}.attn.qkv.{p}", _Q_KV),
            *_SHARED,
        ),
        "timm": KeyMap(
            Rule("pos_embed.token_projection.{p}", "backbone.pos_embed.proj.{p}"),
            Rule(
                {f"cls_attn_blocks.{{i}}.attn.{part}.{{p}}": 1 for part in "qkv"},
                _Q_KV,
            ),
            *_SHARED,
        ),
    }
}
