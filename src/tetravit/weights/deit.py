"""DeiT: published weights, and the map from the authors' (and timm's) tensor names to ours."""

from typing import Any

from tetravit.structures import Preprocess
from tetravit.weights.base import Checkpoint, KeyMap, Rule, Source, hub, menu

_NAMES = KeyMap(
    Rule("patch_embed.proj.{rest}", "backbone.patch_embed.{rest}"),
    Rule("pos_embed", "backbone.pos_embed.table"),
    Rule("cls_token", "backbone.cls_token.token"),
    Rule("dist_token", "backbone.dist_token.token"),
    Rule("head.{p}", "head.{p}"),
    Rule("head_dist.{p}", "head_dist.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)

LAYOUTS = {"deit": {"official": _NAMES, "timm": _NAMES}}

ROOT = "https://dl.fbaipublicfiles.com/deit"
README = "facebookresearch/deit@4da6691 README_deit.md"
COMPARED = "arXiv:2103.10697v2 Table 1"  # as reported by ConViT's authors
DISTILLED = "ImageNet-1k, distilled from RegNetY-16GF"
# fmt: off
FILES = (  # model, tag, side in pixels, top-1, its source, and the prefix of the file's sha256, from its name
    ("deit_tiny",            "in1k",          224, 72.2, COMPARED, "a1311bcf"),
    ("deit_small",           "in1k",          224, 79.8, COMPARED, "cd65a155"),
    ("deit_base",            "in1k",          224, 81.8, COMPARED, "b5f2ef4d"),
    ("deit_base",            "in1k_384",      384, 82.9, README,   "8de9b5d1"),
    ("deit_tiny_distilled",  "in1k_dist",     224, 74.5, README,   "b40b3cf7"),
    ("deit_small_distilled", "in1k_dist",     224, 81.2, README,   "649709d9"),
    ("deit_base_distilled",  "in1k_dist",     224, 83.4, README,   "df68dfff"),
    ("deit_base_distilled",  "in1k_dist_384", 384, 85.2, README,   "d0272ac0"),
)
# fmt: on


def _row(
    model: str, tag: str, file: str, theirs: str, sha256: str, preprocess: Preprocess, **facts: Any
) -> Checkpoint:
    return Checkpoint(
        model,
        tag,
        sources=(
            Source(f"{ROOT}/{file}-{sha256}.pth", "official", "model", sha256),
            Source(hub(f"timm/{theirs}"), "timm"),
        ),
        licence="Apache-2.0",
        commercial=True,
        preprocess=preprocess,
        **facts,
    )


def _classifier(model: str, tag: str, size: int, top1: float, told_in: str, sha256: str) -> Checkpoint:
    file = f"{model}_patch16_{size}"
    return _row(
        model,
        tag,
        file,
        f"{file}.fb_in1k",
        sha256,
        Preprocess(size=size, crop=0.875),
        data=DISTILLED if model.endswith("_distilled") else "ImageNet-1k",
        options={} if size == 224 else {"image_size": size},
        published={"top1": top1},
        published_in=told_in,
    )


CHECKPOINTS = menu(
    *(_classifier(*row) for row in FILES),
    # The teacher of DeiT's and XCiT's distilled models. The network is timm's.
    _row(
        "regnety_160",
        "deit_in1k",
        "regnety_160",
        "regnety_160.deit_in1k",
        "a5fe301d",
        Preprocess(size=224, crop=0.95),
        data="ImageNet-1k",
        published={"top1": 82.9},
        published_in="DeiT",
        measured={"top1": 83.0},
        measured_by="timm, at 224 pixels",
    ),
)
