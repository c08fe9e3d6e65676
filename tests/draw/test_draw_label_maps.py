"""Overlays, legends and label maps as files."""

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.draw.base import fitted, sans
from tetravit.draw.label_maps import EDGE, LISTED, OPAQUE, label_png, overlay, painted, shares
from tetravit.draw.labels import labelled

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_classes_are_laid_over_the_image_in_grey():
    image = torch.full((3, 4, 6), 100, dtype=torch.uint8)
    image[0] = 130  # its mean is 110
    labels = torch.zeros(4, 6, dtype=torch.uint8)
    labels[:, 3:] = 1
    labels[0, 0] = 255
    got = np.asarray(painted(image, labels, [RED, BLUE])).astype(float)
    inside = 110 + OPAQUE * (np.array(BLUE) - 110.0)
    edge = 110 + EDGE * (np.array(RED) - 110.0)
    assert got[2, 4] == pytest.approx(inside, abs=0.51)
    assert got[2, 2] == pytest.approx(edge, abs=0.51)  # left of the border
    assert got[0, 0].tolist() == [130, 100, 100]  # no class: as it was


def test_shares_are_of_all_pixels_and_the_largest_comes_first():
    labels = torch.tensor([[2, 2, 0, 255], [2, 2, 2, 255]])
    assert shares(labels, 3) == [(2, 5 / 8), (0, 1 / 8)]


def test_the_legend_names_what_is_there():
    labels = torch.zeros(40, 60, dtype=torch.uint8)
    labels[:, 30:] = 1
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    one = overlay(image, labels, ["sea", "sky"], [RED, BLUE])
    assert one.width == 480
    below = np.asarray(one)[330:].reshape(-1, 3)
    assert (below == RED).all(axis=1).any()
    assert (below == BLUE).all(axis=1).any()
    only = np.asarray(overlay(image, labels * 0, ["sea", "sky"], [RED, BLUE]))[330:].reshape(-1, 3)
    assert not (only == BLUE).all(axis=1).any()


@pytest.mark.parametrize("count", [1, 5, LISTED, LISTED + 1, 150])
def test_a_legend_of_any_length_fits(count):
    labels = torch.arange(150).clamp(max=count - 1).repeat_interleave(4).reshape(20, 30).to(torch.uint8)
    names = [f"a class with a long name {i}" for i in range(150)]
    picture = overlay(torch.zeros(3, 20, 30, dtype=torch.uint8), labels, names, [RED] * 150)
    assert 320 < picture.height < 550


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (480, 480)),
        ((1, 1000), (3, 2560)),
        ((1000, 1), (1000, 1)),
        ((300, 5000), (154, 2560)),
        ((5000, 1), (1280, 1)),
        ((120, 90), (480, 360)),
        ((600, 800), (600, 800)),
        ((2560, 1280), (1280, 640)),
    ],
)
def test_pictures_of_any_shape_can_be_looked_at(size, shown):
    assert fitted(Image.new("RGB", size)).size == shown


def test_a_narrow_picture_has_a_legend_that_can_be_read():
    image, labels = torch.zeros(3, 1000, 1, dtype=torch.uint8), torch.zeros(1000, 1).long()
    picture = overlay(image, labels, ["sea"], [RED])
    assert picture.width == 480
    assert 2560 < picture.height < 2700
    assert (np.asarray(picture)[2560:] == RED).all(axis=2).any()
    assert labelled(image, [("sea", 0.9)]).width == 480


def test_a_label_map_as_a_file_keeps_its_numbers(tmp_path):
    labels = torch.tensor([[0, 1, 254, 255]])
    label_png(labels, [RED, BLUE]).save(tmp_path / "l.png")
    with Image.open(tmp_path / "l.png") as picture:
        assert picture.mode == "P"
        assert np.asarray(picture).tolist() == labels.tolist()
        assert np.asarray(picture.convert("RGB"))[0].tolist() == [
            [255, 0, 0],
            [0, 0, 255],
            [0] * 3,
            [255] * 3,
        ]


def test_names_of_many_scripts_are_drawn():
    """Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic: none is the box of a letter that is missing."""
    sample = "\u00e9\u017e\u03bb\u0436\u0561\u10d0\u05d0\u0639"
    letters = sans(24)
    missing = bytes(letters.getmask("\U000f0000"))
    assert all(bytes(letters.getmask(letter)) != missing for letter in sample)
