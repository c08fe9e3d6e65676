"""Models by name, and what is said about wrong arguments."""

import pytest
import torch

from tetravit.models import create_backbone, create_model, family, list_models, resolve


def test_names_patterns_and_families():
    assert "xcit_small_12_p16" in list_models()
    assert list_models("xcit_nano*") == ["xcit_nano_12_p16", "xcit_nano_12_p8"]
    assert family("xcit_nano_12_p8") == "xcit"


@pytest.mark.parametrize("num_classes", [0, 7])
def test_the_head_follows_the_class_count(num_classes):
    model = create_model("xcit_nano_12_p16", num_classes=num_classes).eval()
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, num_classes or 128)
    model.reset_head(3)
    assert model(images).shape == (2, 3)


def test_options_reach_the_constructor():
    model = create_model("xcit_nano_12_p16", drop_path=0.2, depth=2, in_chans=1)
    assert len(model.backbone.blocks) == 2
    assert model.backbone.blocks[0].drop_path.rate == 0.2
    assert model.options == {"in_chans": 1, "drop_path": 0.2, "depth": 2}
    assert model.backbone.in_chans == 1


def test_image_size_sets_the_preprocessing():
    assert create_model("xcit_nano_12_p16", image_size=384).input.size == 384


def test_models_can_be_built_without_memory():
    with torch.device("meta"):
        assert create_model("xcit_large_24_p8").head.weight.is_meta


def test_a_backbone_gives_its_native_maps_too():
    backbone = create_backbone("xcit_nano_12_p16").eval()
    images = torch.randn(1, 3, 64, 64)
    assert [m.shape[-1] for m in backbone(images)] == [16, 8, 4, 2]
    assert [m.shape[-1] for m in backbone.backbone.feature_maps(images)] == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "xcit_nano_p16"}, "Unknown model 'xcit_nano_p16'. Did you mean 'xcit_nano_12_p16'?"),
        ({"dephts": 3}, "xcit_nano_12_p16 has no option 'dephts'. Did you mean 'depth'?"),
        ({"num_classes": -1}, "num_classes is 0 (embeddings) or more; got -1."),
        ({"in_chans": 0}, "in_chans is 1 or more; got 0."),
        (
            {"image_size": float("nan")},
            "image_size is a side in pixels from 32 up, or (height, width); got nan.",
        ),
        ({"image_size": 31}, "image_size is a side in pixels from 32 up, or (height, width); got 31."),
        (
            {"image_size": (64, 64, 3)},
            "image_size is a side in pixels from 32 up, or (height, width); got (64, 64, 3).",
        ),
    ],
)
def test_arguments_no_model_can_have(arguments, message):
    with pytest.raises(ValueError) as error:
        create_model(**{"name": "xcit_nano_12_p16", **arguments})
    assert str(error.value) == message


def test_aliases_are_the_same_rows():
    assert resolve("xcit_nano_12_p16") == "xcit_nano_12_p16"
