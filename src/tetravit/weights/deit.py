"""DeiT: the published weights, and how the authors' tensor names, which timm shares, become ours."""

from typing import Any

from tetravit.structures import Preprocess
from tetravit.weights.base import Checkpoint, KeyMap, Rule, Source, hub, menu

_NAMES = KeyMap(
    Rule("patch_embed.proj.{rest}", "backbone.patch_embed.{rest}"),
    Rule("pos_embed", "backbone.pos_embed.table"),
    Rule("cls_token", "backbone.cls_token.token"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)

LAYOUTS = {"deit": {"official": _NAMES, "timm": _NAMES}}

ROOT = "https://dl.fbaipublicfiles.com/deit"
# fmt: off
FILES = {  # top-1 as ConViT's authors compare with it, and the beginning of the file's sha256, from its name
    "deit_tiny":  (72.2, "a1311bcf"),
    "deit_small": (79.8, "cd65a155"),
    "deit_base":  (81.8, "b5f2ef4d"),
}
# fmt: on


def _row(model: str, tag: str, file: str, theirs: str, sha256: str, crop: float, **facts: Any) -> Checkpoint:
    return Checkpoint(
        model,
        tag,
        sources=(
            Source(f"{ROOT}/{file}-{sha256}.pth", "official", "model", sha256),
            Source(hub(f"timm/{theirs}"), "timm"),
        ),
        data="ImageNet-1k",
        licence="Apache-2.0",
        commercial=True,
        preprocess=Preprocess(size=224, crop=crop),
        **facts,
    )


CHECKPOINTS = menu(
    *(
        _row(
            model,
            "in1k",
            f"{model}_patch16_224",
            f"{model}_patch16_224.fb_in1k",
            sha256,
            0.875,
            published={"top1": top1},
            published_in="arXiv:2103.10697v2 Table 1",
        )
        for model, (top1, sha256) in FILES.items()
    ),
    # The teacher of DeiT's and XCiT's distilled models. The network itself is timm's.
    _row(
        "regnety_160",
        "deit_in1k",
        "regnety_160",
        "regnety_160.deit_in1k",
        "a5fe301d",
        0.95,
        published={"top1": 82.9},
        published_in="DeiT",
        measured={"top1": 83.0},
        measured_by="timm, at 224 pixels",
    ),
)
