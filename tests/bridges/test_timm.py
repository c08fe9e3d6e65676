"""timm's tools on these models: its registry, feature extraction, optimizers, data configuration."""

import pytest
import torch

timm = pytest.importorskip("timm")

import tetravit  # noqa: E402
import tetravit.bridges.timm  # noqa: E402
from tetravit.models.files import save  # noqa: E402

SMALL = {  # one of each family, and the options that make it small
    "xcit_nano_12_p16": {"depth": 4, "out_blocks": (0, 1, 2, 3)},
    "convit_tiny": {"depth": 4, "num_gpsa": 2, "out_blocks": (0, 1, 2, 3)},
    "gcvit_xxtiny": {"depths": (2, 2, 2, 2)},
    "twins_svt_small": {"depths": (1, 1, 1, 1)},
    "deit_tiny_distilled": {"depth": 4, "out_blocks": (0, 1, 2, 3)},
}
SIZE = (64, 96)


def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def create(name, **options):
    return timm.create_model(f"tetravit_{name}", img_size=SIZE, **SMALL[name], **options)


def test_every_model_is_registered():
    assert len(timm.list_models("tetravit_*")) == len(tetravit.list_models())
    assert "tetravit_xcit_nano_12_p16.in1k" in timm.list_pretrained("tetravit_*")


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_names_are_those_of_create_model(name):
    model = create(name, num_classes=10, drop_path_rate=0.1).eval()
    ours = tetravit.create_model(name, num_classes=10, image_size=SIZE, **SMALL[name]).eval()
    ours.load_state_dict(model.state_dict())
    assert torch.equal(model(images()), ours(images()))
    features = model.forward_features(images())
    torch.testing.assert_close(model.forward_head(features), ours(images()))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)


@pytest.mark.parametrize("name", SMALL)
def test_the_configuration_describes_the_model(name):
    model = create(name)
    heads = model.default_cfg["classifier"]
    state = model.state_dict()
    for part in [model.default_cfg["first_conv"], *([heads] if isinstance(heads, str) else heads)]:
        assert f"{part}.weight" in state
    full = model(torch.randn(1, 3, 224, 224)) if name.startswith("twins") else None
    assert full is None or full.shape == (1, 1000)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["mean"]) == ((3, 224, 224), (0.485, 0.456, 0.406))


SLOW = [pytest.param(n, marks=[pytest.mark.slow] * (n == "gcvit_xxtiny")) for n in SMALL]  # the most blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_features_only_gives_maps(name):
    model = create(name, features_only=True)
    maps = model(images())
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [SIZE[0] // m.shape[2] for m in maps] == model.feature_info.reduction()
    last = create(name, features_only=True, out_indices=(1, -1))
    assert [m.shape for m in last(images())] == [maps[1].shape, maps[3].shape]
    final, tokens = create(name).forward_intermediates(images(), indices=1, norm=True, output_fmt="NLC")
    assert len(tokens) == 1
    assert tokens[0].shape[2] == (final.shape[1] if final.ndim == 4 else final.shape[2])


@pytest.mark.parametrize("name", SMALL)
def test_the_classifier_can_be_reset(name):
    model = create(name).eval()
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(images()).shape == model.forward_features(images()).shape
    model.reset_classifier(7, "avg")
    assert model(images()).shape == (2, 7)
    head = model.get_classifier()
    assert all(part.out_features == 7 for part in (head if name.endswith("distilled") else [head]))


@pytest.mark.parametrize("name", SMALL)
def test_optimizers_with_layer_decay_and_checkpointing(name):
    from timm.optim import create_optimizer_v2

    model = create(name, num_classes=10).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in optimizer.param_groups})
    assert len(scales) > 2
    assert scales[-1] == 1.0
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    kept = model.no_weight_decay()
    assert all(id(p) not in decayed for n, p in model.named_parameters() if n in kept or p.ndim == 1)
    model.set_grad_checkpointing()
    model(images()).mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_weights_come_from_the_catalogue_or_a_file(tmp_path):
    ours = tetravit.create_model("xcit_nano_12_p16", num_classes=10, depth=1).eval()
    save(ours, tmp_path / "ours.safetensors")
    model = timm.create_model(
        "tetravit_xcit_nano_12_p16",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "ours.safetensors")},
        num_classes=10,
    ).eval()
    assert torch.equal(model(images()), ours(images()))
    with pytest.raises(ValueError, match=r"licensed CC-BY-NC-SA-4.0, which forbids commercial use"):
        timm.create_model("tetravit_gcvit_xxtiny", pretrained=True)


def test_what_timm_has_and_this_has_not_is_one_line():
    with pytest.raises(ValueError, match=r"^global_pool is one of 'avg', 'token', ''; got 'max'.$"):
        create("xcit_nano_12_p16", global_pool="max")
    with pytest.raises(ValueError, match=r"^There are 4 levels, 0 to 3; got \[4\].$"):
        create("xcit_nano_12_p16").forward_intermediates(images(), indices=[4])
    with pytest.raises(ValueError, match=r"^torch.jit.script has no support for these models"):
        torch.jit.script(create("xcit_nano_12_p16"))


@pytest.mark.parametrize(
    ("option", "value", "cure"),
    [
        ("pretrained", True, 'weights="in1k" loads published weights'),
        ("features_only", True, "create_backbone(NAME).feature_maps(images) gives the maps"),
        (
            "out_indices",
            (1,),
            "create_backbone(NAME).feature_maps(images) gives every level; choose among them",
        ),
        ("drop_path_rate", 0.1, "drop_path=0.1 sets stochastic depth"),
    ],
)
def test_timms_arguments_in_create_model_name_ours(option, value, cure):
    with pytest.raises(ValueError) as error:
        tetravit.create_model("xcit_nano_12_p16", **{option: value})
    assert str(error.value) == f"xcit_nano_12_p16 has no option {option!r}, which is timm's: {cure}."
