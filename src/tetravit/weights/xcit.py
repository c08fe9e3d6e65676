"""XCiT: published weights, and the maps from the authors' and timm's tensor names to ours."""

from typing import Any

from tetravit.structures import ADE20K_INPUT, COCO_INPUT, Preprocess
from tetravit.weights.base import Adapter, Checkpoint, KeyMap, Rule, Source, hub, menu

_SHARED = (
    Rule("patch_embed.proj.{rest}", "backbone.patch_embed.{rest}"),
    Rule("blocks.{i}.local_mp.bn.{rest}", "backbone.blocks.{i}.local.norm.{rest}"),
    Rule("blocks.{i}.local_mp.{rest}", "backbone.blocks.{i}.local.{rest}"),
    Rule("cls_attn_blocks.{i}.{rest}", "backbone.class_blocks.{i}.{rest}"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)
_Q_KV = {"backbone.class_blocks.{i}.attn.q.{p}": 1, "backbone.class_blocks.{i}.attn.kv.{p}": 2}

ADAPTERS = {
    "xcit": Adapter(
        KeyMap(
            Rule("fpn1.{rest}", "pyramid.levels.0.{rest}"),
            Rule("fpn2.{rest}", "pyramid.levels.1.{rest}"),
        ),
        unused=("backbone.cls_token", "backbone.class_blocks.", "backbone.norm."),
    )
}

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

ROOT = "https://dl.fbaipublicfiles.com"
README = "facebookresearch/xcit@82f5291 README.md"
LICENCE = "Apache-2.0"

# Published top-1 at 224 pixels, at 224 and at 384 after distillation, each followed by timm's measurements with the
# same file: top-1 and top-5 on ImageNet, top-1 on ImageNet ReaL, V2, -A, -R and -Sketch.
METRICS = ("top1", "top5", "real", "v2", "a", "r", "sketch")
TAGS = (
    ("in1k", 224, "", "fb_in1k"),
    ("in1k_dist", 224, "_dist", "fb_dist_in1k"),
    ("in1k_dist_384", 384, "_dist", "fb_dist_in1k"),
)
# fmt: off
ACCURACY = {
    "xcit_nano_12_p16": (
        (69.9, 69.982, 89.780, 77.906, 58.410, 4.813, 33.037, 21.449),
        (72.2, 72.318, 90.826, 80.246, 60.350, 5.200, 35.210, 23.272),
        (75.4, 75.460, 92.672, 83.139, 64.250, 11.387, 36.157, 23.991),
    ),
    "xcit_tiny_12_p16": (
        (77.1, 77.122, 93.728, 84.104, 65.630, 10.933, 39.497, 28.511),
        (78.6, 78.572, 94.210, 85.219, 66.970, 11.747, 41.843, 30.003),
        (80.9, 80.954, 95.430, 87.209, 69.480, 24.120, 42.573, 30.394),
    ),
    "xcit_tiny_24_p16": (
        (79.4, 79.474, 94.878, 85.751, 68.380, 16.053, 42.290, 30.716),
        (80.4, 80.462, 95.202, 86.538, 69.740, 17.093, 44.693, 33.017),
        (82.6, 82.580, 96.254, 88.195, 72.080, 33.547, 45.700, 33.546),
    ),
    "xcit_small_12_p16": (
        (82.0, 81.982, 95.814, 86.995, 71.090, 25.027, 45.597, 33.827),
        (83.3, 83.354, 96.420, 88.283, 72.540, 27.000, 49.413, 36.949),
        (84.7, 84.734, 97.136, 89.243, 74.390, 43.227, 50.440, 37.609),
    ),
    "xcit_small_24_p16": (
        (82.6, 82.588, 95.996, 87.151, 71.130, 28.320, 45.577, 34.039),
        (83.9, 83.880, 96.734, 88.539, 73.150, 30.600, 50.743, 37.721),
        (85.1, 85.102, 97.318, 89.312, 74.650, 46.773, 51.870, 38.498),
    ),
    "xcit_medium_24_p16": (
        (82.7, 82.630, 95.978, 86.942, 70.940, 30.027, 45.590, 34.235),
        (84.3, 84.292, 96.936, 88.802, 73.670, 34.013, 52.233, 39.283),
        (85.4, 85.434, 97.408, 89.472, 75.190, 49.267, 53.237, 39.938),
    ),
    "xcit_large_24_p16": (
        (82.9, 82.886, 95.880, 86.963, 71.530, 32.733, 46.890, 35.499),
        (84.9, 84.936, 97.128, 89.053, 74.560, 37.307, 54.297, 40.979),
        (85.8, 85.778, 97.530, 89.675, 75.830, 52.827, 54.870, 41.042),
    ),
    "xcit_nano_12_p8": (
        (73.8, 73.900, 92.154, 81.675, 62.380, 10.200, 33.623, 22.504),
        (76.3, 76.330, 93.070, 83.748, 64.510, 10.600, 36.530, 24.958),
        (77.8, 77.810, 94.036, 85.008, 66.800, 19.760, 35.757, 24.064),
    ),
    "xcit_tiny_12_p8": (
        (79.7, 79.710, 95.058, 86.160, 68.590, 20.827, 40.527, 28.914),
        (81.2, 81.214, 95.614, 87.226, 70.960, 22.067, 43.553, 31.944),
        (82.4, 82.394, 96.222, 88.103, 71.800, 34.347, 43.263, 31.201),
    ),
    "xcit_tiny_24_p8": (
        (81.9, 81.888, 95.978, 87.384, 71.330, 28.653, 43.233, 32.245),
        (82.6, 82.578, 96.186, 88.054, 72.410, 28.520, 46.280, 35.243),
        (83.7, 83.784, 96.716, 88.804, 73.450, 42.347, 46.243, 34.903),
    ),
    "xcit_small_12_p8": (
        (83.4, 83.354, 96.472, 87.830, 72.670, 37.293, 47.080, 35.587),
        (84.2, 84.252, 96.874, 89.019, 73.910, 38.160, 50.463, 38.454),
        (85.1, 85.068, 97.264, 89.521, 75.040, 50.547, 51.147, 38.669),
    ),
    "xcit_small_24_p8": (
        (83.9, 83.854, 96.636, 87.984, 73.140, 41.653, 47.347, 35.515),
        (84.9, 84.878, 97.200, 89.224, 74.980, 41.533, 52.163, 39.321),
        (85.6, 85.580, 97.572, 89.752, 75.810, 54.387, 52.313, 39.030),
    ),
    "xcit_medium_24_p8": (
        (83.7, 83.744, 96.394, 87.636, 73.140, 43.120, 46.443, 35.442),
        (85.1, 85.078, 97.274, 89.297, 75.660, 45.227, 53.660, 40.508),
        (85.8, 85.842, 97.602, 89.809, 76.300, 56.640, 53.337, 40.123),
    ),
    "xcit_large_24_p8": (
        (84.4, 84.380, 96.664, 88.163, 74.170, 46.867, 49.143, 38.138),
        (85.4, 85.396, 97.418, 89.519, 76.060, 47.907, 55.997, 42.573),
        (86.0, 86.024, 97.690, 89.897, 76.750, 59.893, 56.373, 42.864),
    ),
}

# Box AP and mask AP on COCO, mIoU on ADE20K of Semantic FPN and of UPerNet.
DENSE = {
    "xcit_tiny_12_p16":   (42.7, 38.5, 38.1, 41.5),
    "xcit_tiny_12_p8":    (44.5, 40.3, 39.9, 43.5),
    "xcit_small_12_p16":  (45.3, 40.8, 43.9, 45.9),
    "xcit_small_12_p8":   (47.0, 42.3, 44.2, 46.6),
    "xcit_small_24_p16":  (46.5, 41.8, 44.6, 46.9),
    "xcit_small_24_p8":   (48.1, 43.0, 47.1, 48.1),
    "xcit_medium_24_p16": (46.7, 42.0, 45.9, 47.6),
    "xcit_medium_24_p8":  (48.5, 43.7, 46.9, 48.4),
}

# k-NN and linear top-1 of DINO features; the middle of the file name at the XCiT URL.
DINO = {
    "xcit_small_12_p16":  (76.0, 77.8, "small_12_cp16"),
    "xcit_small_12_p8":   (77.1, 79.2, "small_12_cp8"),
    "xcit_medium_24_p16": (76.4, 78.8, "medium_24_cp16"),
    "xcit_medium_24_p8":  (77.9, 80.3, "medium_24_cp8"),
}
# fmt: on


def _classifiers(model: str) -> list[Checkpoint]:
    return [
        Checkpoint(
            model,
            tag,
            sources=(
                Source(f"{ROOT}/xcit/{model}_{size}{suffix}.pth", "official", "model"),
                Source(hub(f"timm/{model}_{size}.{theirs}"), "timm"),
            ),
            data="ImageNet-1k" + (", distilled from RegNetY-16GF" if suffix else ""),
            licence=LICENCE,
            commercial=True,
            options={} if size == 224 else {"image_size": size},
            preprocess=Preprocess(size=size, crop=1.0),
            published={"top1": published},
            published_in=README,
            measured=dict(zip(METRICS, measured, strict=True)),
            measured_by="timm results",
        )
        for (tag, size, suffix, theirs), (published, *measured) in zip(TAGS, ACCURACY[model], strict=True)
    ]


def _features(model: str) -> Checkpoint:
    knn, linear, short = DINO[model]
    name = f"dino_{model}_pretrain"
    return Checkpoint(
        model,
        "dino",
        sources=(
            Source(f"{ROOT}/dino/{name}/{name}.pth", "official"),
            Source(f"{ROOT}/xcit/xcit_{short}_dino.pth", "official"),
        ),
        data="ImageNet-1k without labels (DINO)",
        licence=LICENCE,
        commercial=True,
        task="embed",
        num_classes=0,
        preprocess=Preprocess(size=224, crop=0.875),
        published={"knn": knn, "linear": linear},
        published_in=README,
    )


def _dense(model: str) -> list[Checkpoint]:
    box, mask, fpn, upernet = DENSE[model]
    short = model.removeprefix("xcit_")

    def row(tag: str, folder: str, file: str, **facts: Any) -> Checkpoint:
        layout = "mmdet" if folder == "coco" else "mmseg"
        source = Source(f"{ROOT}/xcit/{folder}/{file}_xcit_{short}.pth", layout, "state_dict")
        return Checkpoint(
            model, tag, (source,), licence=LICENCE, commercial=True, published_in=README, **facts
        )

    coco = {
        "data": "COCO 2017, 36 epochs",
        "task": "detect",
        "num_classes": 80,
        "preprocess": COCO_INPUT,
    }
    ade = {"task": "segment", "num_classes": 150, "preprocess": ADE20K_INPUT}
    return [
        row(
            "coco_mask_rcnn",
            "coco",
            "maskrcnn",
            head="mask_rcnn",
            published={"box_ap": box, "mask_ap": mask},
            **coco,
        ),
        row(
            "ade20k_semantic_fpn",
            "ade",
            "sem_fpn",
            head="semantic_fpn",
            data="ADE20K, 80k steps",
            published={"miou": fpn},
            **ade,
        ),
        row(
            "ade20k_upernet",
            "ade",
            "upernet",
            head="upernet",
            data="ADE20K, 160k steps",
            published={"miou": upernet},
            **ade,
        ),
    ]


CHECKPOINTS = menu(
    *(row for model in ACCURACY for row in _classifiers(model)),
    *(_features(model) for model in DINO),
    *(row for model in DENSE for row in _dense(model)),
)
