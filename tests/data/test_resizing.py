"""Resizing and cropping equal torchvision's, bit for bit."""

import itertools

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tetravit.data.resizing import center_crop, resize

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
KINDS = (torch.uint8, torch.float32, torch.float16, torch.float64)


def pictures(kind):
    torch.manual_seed(0)
    image = torch.randint(256, (3, 37, 53), dtype=torch.uint8)
    plain = image if kind == torch.uint8 else (image / 255).to(kind)
    yield plain
    yield plain.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as decoders lay it out
    yield plain[:1]


@pytest.mark.parametrize(("kind", "mode"), list(itertools.product(KINDS, MODES)))
def test_resize(kind, mode):
    for image, size, antialias in itertools.product(
        pictures(kind), [(16, 16), (20, 71), (90, 90), (37, 53)], (True, False)
    ):
        ours = resize(image, size, mode, antialias=antialias)
        theirs = F.resize(image, list(size), interpolation=MODES[mode], antialias=antialias)
        assert ours.dtype == theirs.dtype
        assert ours.is_contiguous() == theirs.is_contiguous()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (20, 60), (50, 21), (60, 60), (36, 52), (38, 54)])
def test_center_crop(size):
    for image in pictures(torch.uint8):
        assert torch.equal(center_crop(image, size), F.center_crop(image, list(size)))
