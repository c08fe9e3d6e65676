"""Published tensors of every family: outputs of the authors' code and of timm, names in both directions, counts."""

import pytest
import timm
import torch
from authors import golden, golden_names
from tests.families import SMALLEST

from tetravit import weights
from tetravit.benchmark.flops import table
from tetravit.models import create_model, family

PARAMETERS = {  # with 1000 classes
    "convit_tiny": 5_710_512,
    "convit_tiny_plus": 9_972_912,
    "convit_small": 27_777_322,
    "convit_small_plus": 48_979_882,
    "convit_base": 86_540_040,
    "convit_base_plus": 153_134_856,
    "deit_tiny": 5_717_416,
    "deit_small": 22_050_664,
    "deit_base": 86_567_656,
    "deit_tiny_distilled": 5_910_800,
    "deit_small_distilled": 22_436_432,
    "deit_base_distilled": 87_338_192,
    "gcvit_xxtiny": 11_995_428,
    "gcvit_xtiny": 19_981_294,
    "gcvit_tiny": 28_221_974,
    "gcvit_tiny2": 34_535_654,
    "gcvit_small": 51_092_173,
    "gcvit_small2": 68_615_197,
    "gcvit_base": 90_320_836,
    "gcvit_large": 202_075_570,
    "gcvit_large_384": 202_860_610,
    "gcvit_large_512": 203_795_362,
    "twins_pcpvt_small": 24_106_216,
    "twins_pcpvt_base": 43_828_456,
    "twins_pcpvt_large": 60_989_672,
    "twins_svt_small": 24_060_776,
    "twins_svt_base": 56_070_952,
    "twins_svt_large": 99_271_400,
    "xcit_nano_12_p16": 3_053_224,
    "xcit_tiny_12_p16": 6_716_272,
    "xcit_tiny_24_p16": 12_116_896,
    "xcit_small_12_p16": 26_253_304,
    "xcit_small_24_p16": 47_671_384,
    "xcit_medium_24_p16": 84_395_752,
    "xcit_large_24_p16": 189_096_136,
    "xcit_nano_12_p8": 3_049_016,
    "xcit_tiny_12_p8": 6_706_504,
    "xcit_tiny_24_p8": 12_107_128,
    "xcit_small_12_p8": 26_213_032,
    "xcit_small_24_p8": 47_631_112,
    "xcit_medium_24_p8": 84_323_624,
    "xcit_large_24_p8": 188_932_648,
}
HUB = "https://huggingface.co/timm/"
ANY_SIZE = {"twins", "xcit"}  # families whose timm models take other sizes than the paper's


def timm_name(name: str) -> str | None:
    """The name in timm of a model whose weights the catalogue has from there."""
    urls = (s.url for row in weights.CHECKPOINTS.values() if row.model == name for s in row.sources)
    own = name if timm.is_model(name) else None
    return next((url.removeprefix(HUB).partition(".")[0] for url in urls if url.startswith(HUB)), own)


def timm_rows() -> list[object]:
    """Our name and timm's of the smallest model of each class; a model of 10 M parameters or more is slow."""
    names = [name for name in SMALLEST if "timm" in weights.LAYOUTS.get(family(name), {}) and timm_name(name)]
    slow = [pytest.mark.slow if table()[name].params > 10e6 else () for name in names]
    return [pytest.param(name, timm_name(name), marks=m) for name, m in zip(names, slow, strict=True)]


def big(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow if PARAMETERS[name] > 30e6 else ())


def test_parameter_counts_are_those_of_the_authors_models():
    """The table is compared with the models in test_backbones.py."""
    assert {name: table()[name].params for name in PARAMETERS} == PARAMETERS


def test_every_family_has_a_row_of_timm():
    families = {family(row.values[0]) for row in timm_rows()}
    assert families == {name for name, layouts in weights.LAYOUTS.items() if "timm" in layouts}


@pytest.mark.parametrize("name", [big(name) for name in golden_names()])
def test_outputs_are_those_of_the_authors_code(name):
    authors, official = golden(name), weights.LAYOUTS[family(name)]["official"]
    model = create_model(name).eval()
    model.load_state_dict(official.to_ours(authors.state()))
    for size in authors.sizes:
        with torch.no_grad():
            embedding = model.backbone(authors.images(size))
            logits = model.head(embedding)
        torch.testing.assert_close(embedding, authors.answer("features", size), atol=5e-5, rtol=0)
        torch.testing.assert_close(logits, authors.answer("logits", size), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", golden_names())
def test_official_names_map_both_ways(name):
    """Index buffers are dropped on the way to ours, and written back."""
    shapes, official = golden(name).keys, weights.LAYOUTS[family(name)]["official"]
    theirs = {key: torch.rand(shape) for key, shape in shapes.items() if not key.endswith("position_index")}
    with torch.device("meta"):
        expected = create_model(name).state_dict()
    ours = official.to_ours(theirs)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in expected.items()}
    back = official.to_theirs(ours)
    assert {key: tuple(value.shape) for key, value in back.items()} == shapes
    assert all(torch.equal(value, back[key]) for key, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), timm_rows())
def test_timm_state_loads_and_ours_exports_back(name, other):
    layout = weights.LAYOUTS[family(name)]["timm"]
    theirs = timm.create_model(other).eval()
    for key, parameter in theirs.named_parameters():
        if key.endswith("gating_param"):  # ConViT's: equal in all heads at the start
            torch.nn.init.normal_(parameter)
    ours = create_model(name).eval()
    ours.load_state_dict(layout.to_ours(theirs.state_dict()))
    for size in [(224, 224), *([(96, 160)] if family(name) in ANY_SIZE else [])]:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)
    back = layout.to_theirs(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(back)
