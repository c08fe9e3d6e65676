"""Figures that say how far a map can be trusted."""

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.explainers import explain
from tetravit.explainers.parts.check import area, picture, rank_correlation
from tetravit.models import create_model
from tetravit.structures import Preprocess


@pytest.fixture(scope="module")
def bright():
    """A model that sees one thing: how bright its input is."""
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    model.input = Preprocess(size=64, crop=1.0)

    def forward(images):
        value = 20 * images.clamp(min=0).mean(dim=(1, 2, 3))
        return torch.stack((value, -value), dim=1)

    model.forward = forward
    return model


def square():
    image = np.zeros((64, 64, 3), np.uint8)
    image[40:56, 8:24] = 255
    return image


def test_a_true_map_beats_the_random_order_and_points_into_the_box(bright):
    explanation = explain(
        bright, square(), "occlusion", class_=0, square=8, check=True, boxes=[(8, 40, 24, 56)]
    )
    found = explanation.check
    assert found["deletion"]["map"] < found["deletion"]["random"] - 0.05
    assert found["insertion"]["map"] > found["insertion"]["random"] + 0.05
    assert found["pointing"] is True
    assert found["energy"] > 0.5
    assert found["area"] == pytest.approx(256 / 4096, abs=1e-4)
    assert picture(explanation).size == (900, 360)


def test_a_mask_counts_as_boxes_do(bright):
    mask = np.zeros((64, 64), bool)
    mask[:8] = True
    found = explain(bright, square(), "occlusion", class_=0, square=8, check=True, mask=mask).check
    assert found["pointing"] is False
    assert found["energy"] < 0.1


def test_attention_does_not_depend_on_the_head():
    model = create_model("xcit_nano_12_p16", num_classes=3, depth=1).eval()
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    found = explain(model, image, "class-attention", size=64, check=True).check
    assert found["randomised"] == 1.0
    assert explain(model, image, "gradcam", size=64, check=True).check["randomised"] < 0.99


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"boxes": [(5, 5, 90, 20)]},
            "A box is x1,y1,x2,y2 in a picture of 64 x 64 pixels; got 5,5,90,20.",
        ),
        ({"mask": np.ones((3, 4), bool)}, "The mask has 4 x 3 pixels; the picture has 64 x 64."),
    ],
)
def test_boxes_and_masks_of_another_picture_are_refused(bright, given, message):
    with pytest.raises(ValueError) as error:
        explain(bright, square(), "occlusion", class_=0, check=True, **given)
    assert str(error.value) == message


def test_maps_without_places_have_nothing_to_check():
    model = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    with pytest.raises(ValueError, match=r"^The maps of temperatures have no places in the picture"):
        explain(model, square(), "temperatures", check=True)


def test_areas_and_ranks_by_hand():
    assert area([1.0, 0.5, 0.0]) == pytest.approx(0.5)
    a = torch.tensor([1.0, 2.0, 3.0, 9.0])
    assert rank_correlation(a, a**3) == pytest.approx(1.0)
    assert rank_correlation(a, -a) == pytest.approx(-1.0)
    assert rank_correlation(a, torch.ones(4)) == 0.0
