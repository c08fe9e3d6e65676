"""Twins: published weights, and the map from the authors' (and timm's) tensor names to ours."""

from tetravit.structures import ADE20K_INPUT, Preprocess
from tetravit.weights.base import Adapter, Checkpoint, KeyMap, Rule, Source, drive, hub, menu

_OFFICIAL = KeyMap(
    Rule("pos_block.{i}.proj.0.{p}", "backbone.pos_embeds.{i}.proj.{p}"),
    Rule("head.{p}", "head.{p}"),
    Rule("{rest}", "backbone.{rest}"),
)

_MMPRETRAIN = KeyMap(  # open-mmlab/mmpretrain tools/model_converters/twins2mmpretrain.py, inverted
    Rule("backbone.patch_embeds.{i}.projection.{p}", "backbone.patch_embeds.{i}.proj.{p}"),
    Rule("backbone.stages.{i}.{j}.ffn.layers.0.0.{p}", "backbone.blocks.{i}.{j}.mlp.fc1.{p}"),
    Rule("backbone.stages.{i}.{j}.ffn.layers.1.{p}", "backbone.blocks.{i}.{j}.mlp.fc2.{p}"),
    Rule("backbone.stages.{i}.{rest}", "backbone.blocks.{i}.{rest}"),
    Rule("backbone.position_encodings.{i}.proj.{p}", "backbone.pos_embeds.{i}.proj.{p}"),
    Rule("backbone.norm_after_stage3.{p}", "backbone.norm.{p}"),
    Rule("head.fc.{p}", "head.{p}"),
    Rule("backbone.{rest}", "backbone.{rest}"),
)

ADAPTERS = {"twins": Adapter(KeyMap(Rule("norm_list.{i}.{p}", "backbone.stage_norms.{i}.{p}")))}

LAYOUTS = {"twins": {"official": _OFFICIAL, "timm": _OFFICIAL, "mmpretrain": _MMPRETRAIN}}

MIRROR = "https://download.openmmlab.com/mmclassification/v0/twins"
# Published top-1, measured by timm (crop 0.9); the file on Google Drive; the middle of the name of mmpretrain's copy,
# and the prefix of its sha256.
# fmt: off
ACCURACY = {
    "twins_pcpvt_small": (81.2, 81.116, "1TWIx_8M-4y6UOKtbCgm1v-UVQ-_lYe6X", "pcpvt-small", "8xb128", "ef23c132"),
    "twins_pcpvt_base":  (82.7, 82.724, "1BsD3ZRivvPsHoZB1AX-tbirFLtCln8ky", "pcpvt-base", "8xb128", "f8c4b0d5"),
    "twins_pcpvt_large": (83.1, 83.158, "17xZXOWEcSGs0quBmMEkBYCxjPRYH-L45", "pcpvt-large", "16xb64", "c1ef8d80"),
    "twins_svt_small":   (81.7, 81.694, "131SVOphM_-SaBytf4kWjo3ony5hpOt4S", "svt-small", "8xb128", "8fe5205b"),
    "twins_svt_base":    (83.2, 83.122, "1s83To8xgDWY6Ad8VBP3Nx9gqY709rrGu", "svt-base", "8xb128", "e31cc8e9"),
    "twins_svt_large":   (83.7, 83.718, "1um39wxIaicmOquP2fr_SiZdxNCUou8w-", "", "", ""),
}
# Top-1 on ImageNet ReaL and V2, from the same measurements.
RELABELLED = {
    "twins_pcpvt_small": (86.65, 70.47),
    "twins_pcpvt_base":  (87.72, 72.25),
    "twins_pcpvt_large": (87.90, 72.58),
    "twins_svt_small":   (86.76, 70.43),
    "twins_svt_base":    (87.63, 72.72),
    "twins_svt_large":   (87.93, 73.45),
}
# mIoU of UPerNet on ADE20K, single-scale and multi-scale with flips; the file on Google Drive.
UPERNET = {
    "twins_pcpvt_small": (46.2, 47.5, "1PkkBULZZUhIkFKq_D9db1DXUIHwIPlvp"),
    "twins_pcpvt_base":  (47.1, 48.4, "16sCd0slLLz6xt3C2ma3TkS9rpMS9eezT"),
    "twins_pcpvt_large": (48.6, 49.8, "1wsU9riWBiN22fyfsJCHDFhLyP2c_n8sk"),
    "twins_svt_small":   (46.2, 47.1, "18OhG0sbAJ5okPj0zn-8YTydKG9jS8TUx"),
    "twins_svt_base":    (47.4, 48.9, "1LNtdvACihmKO6XyBPoJDxbrd6AuHVVvq"),
    "twins_svt_large":   (48.8, 50.2, "1xS91hytfzuMZ5Rgb-W-cOJ9G7ptjVwlO"),
}
# fmt: on
SHA256 = {"twins_pcpvt_small": "ef23c132078a8355a6c5705cd57e1f24cf356e8b1b44ea8d245abf2f40a130b3"}
README = "Meituan-AutoML/Twins@c1ff671 README.md"


def _classifier(model: str) -> Checkpoint:
    published, measured, key, copy, batch, sha256 = ACCURACY[model]
    real, v2 = RELABELLED[model]
    sources = [Source(drive(key), "official"), Source(hub(f"timm/{model}.in1k"), "timm")]
    if copy:
        url = f"{MIRROR}/twins-{copy}_3rdparty_{batch}_in1k_20220126-{sha256}.pth"
        sources.append(Source(url, "mmpretrain", "state_dict", sha256=SHA256.get(model, sha256)))
    return Checkpoint(
        model,
        "in1k",
        sources=tuple(sources),
        data="ImageNet-1k",
        licence="Apache-2.0",
        commercial=True,
        preprocess=Preprocess(size=224, crop=0.875),
        published={"top1": published},
        published_in=README,
        measured={"top1": measured, "real": real, "v2": v2},
        measured_by="timm, crop 0.9",
    )


def _segmentor(model: str) -> Checkpoint:
    single, multi, key = UPERNET[model]
    return Checkpoint(
        model,
        "ade20k_upernet",
        sources=(Source(drive(key), "mmseg", "state_dict"),),
        data="ADE20K, 160k steps",
        licence="Apache-2.0",
        commercial=True,
        task="segment",
        head="upernet",
        num_classes=150,
        preprocess=ADE20K_INPUT,
        published={"miou": single, "miou_multi_scale": multi},
        published_in=README,
    )


CHECKPOINTS = menu(*map(_classifier, ACCURACY), *map(_segmentor, UPERNET))
