"""Operations of RandAugment that are not Pillow's own against Pillow; crops that keep their layout."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tetravit.data import imageops
from tetravit.data.augment import parse
from tetravit.data.imageops import OPERATIONS, apply
from tetravit.data.resizing import resize

BICUBIC = Image.Resampling.BICUBIC
SHIFTED = ("ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def pictures():
    generator = np.random.default_rng(0)
    for size in ((61, 83), (32, 20), (7, 5)):
        yield Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        slopes = np.indices(size).sum(0)[..., None] * np.array([1, 2, 3])
        yield Image.fromarray((slopes % 256).astype(np.uint8))
        yield Image.new("RGB", size[::-1], (100, 3, 255))


@pytest.mark.parametrize("name", SHIFTED)
def test_op_by_op(name, monkeypatch):
    """Every pixel, at every level and sign."""
    cases = [(level, sign) for level in (0.0, 0.5, 3.0, 5.0, 8.7, 10.0) for sign in (1, -1)]
    found = [
        np.asarray(apply(name, picture, level, sign, BICUBIC))
        for picture in pictures()
        for level, sign in cases
    ]
    operation, value = OPERATIONS[name]
    matrix = operation.keywords["matrix"]
    wanted = [
        np.asarray(imageops._affine(picture, value(level, sign), BICUBIC, matrix))
        for picture in pictures()
        for level, sign in cases
    ]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_drawn_is_nothing_done():
    image = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).permute(2, 0, 1)
    step = parse("randaugment(2, 9)", size=8).steps[0]
    assert step.transform(image, {"steps": []}) is image


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_parts_of_a_decoded_image_are_resized_as_torchvision_does(channels, mode):
    generator = torch.Generator().manual_seed(0)
    shape = (50, 60, channels)
    decoded = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    for top, left, height, width in (
        (0, 0, 50, 60),
        (10, 5, 30, 40),
        (9, 5, 1, 40),
        (9, 5, 30, 1),
        (3, 4, 24, 24),
    ):
        part = decoded[:, top : top + height, left : left + width]
        ours = resize(part, (24, 24), mode, antialias=True)
        theirs = F.resized_crop(
            decoded,
            top,
            left,
            height,
            width,
            [24, 24],
            interpolation=InterpolationMode(mode),
            antialias=True,
        )
        assert torch.equal(ours, theirs)
        if channels == 3:
            assert ours.stride(0) == 1  # pixel by pixel, as it came
