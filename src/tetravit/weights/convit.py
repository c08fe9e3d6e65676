"""ConViT: published weights, and the map from the authors' (and timm's) tensor names to ours."""

from tetravit.structures import Preprocess
from tetravit.weights.base import Checkpoint, KeyMap, Rule, Source, hub, menu

_NAMES = KeyMap(
    Rule("patch_embed.proj.{rest}", "backbone.patch_embed.{rest}"),
    Rule("pos_embed", "backbone.pos_embed.table"),
    Rule("cls_token", "backbone.cls_token.token"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)

LAYOUTS = {"convit": {"official": _NAMES, "timm": _NAMES}}

# Published top-1; measured by timm with the same file: top-1 and top-5 on ImageNet, top-1 on ImageNet ReaL, V2,
# -A, -R and -Sketch.
METRICS = ("top1", "top5", "real", "v2", "a", "r", "sketch")
# fmt: off
ACCURACY = {
    "convit_tiny":  (73.1, 73.140, 91.704, 81.132, 61.430,  8.707, 35.100, 22.266),
    "convit_small": (81.3, 81.412, 95.740, 87.038, 70.710, 24.813, 45.250, 32.956),
    "convit_base":  (82.4, 82.296, 95.936, 87.200, 71.520, 29.387, 48.247, 35.318),
}
# fmt: on

CHECKPOINTS = menu(
    *(
        Checkpoint(
            model,
            "in1k",
            sources=(
                Source(f"https://dl.fbaipublicfiles.com/convit/{model}.pth", "official"),
                Source(hub(f"timm/{model}.fb_in1k"), "timm"),
            ),
            data="ImageNet-1k",
            licence="Apache-2.0",
            commercial=True,
            preprocess=Preprocess(size=224, crop=0.875),
            published={"top1": published},
            published_in="arXiv:2103.10697v2 Table 1",
            measured=dict(zip(METRICS, measured, strict=True)),
            measured_by="timm results",
        )
        for model, (published, *measured) in ACCURACY.items()
    )
)
