"""Images, boxes, masks and label maps are moved as torchvision moves them, bit for bit."""

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from tetravit.data import geometry
from tetravit.data.geometry import Boxes, Masks, size_of
from tetravit.data.imageops import ColorJitter
from tetravit.data.transforms.base import to_pillow
from tetravit.data.transforms.crop import covered

SIZE = (37, 53)
BICUBIC = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
BILINEAR = {"interpolation": InterpolationMode.BILINEAR, "antialias": False}
MOVES = {  # ours, torchvision's
    "flip": (geometry.flip, F.horizontal_flip),
    "crop": (lambda x: geometry.crop(x, 3, 5, 20, 31), lambda x: F.crop(x, 3, 5, 20, 31)),
    "smaller": (
        lambda x: geometry.resize(x, (16, 20), antialias=False),
        lambda x: F.resize(x, [16, 20], **BILINEAR),
    ),
    "larger": (
        lambda x: geometry.resize(x, (70, 61), antialias=False),
        lambda x: F.resize(x, [70, 61], **BILINEAR),
    ),
    "same": (lambda x: geometry.resize(x, SIZE, antialias=False), lambda x: F.resize(x, [*SIZE], **BILINEAR)),
    "resized crop": (
        lambda x: geometry.resized_crop(x, 2, 7, 30, 40, (24, 24), "bicubic"),
        lambda x: F.resized_crop(x, 2, 7, 30, 40, [24, 24], **BICUBIC),
    ),
    "pad": (lambda x: geometry.pad(x, 4, 3, 2, 1), lambda x: F.pad(x, [4, 3, 2, 1])),
    "fill": (lambda x: geometry.pad(x, 0, 0, 9, 8, fill=255), lambda x: F.pad(x, [0, 0, 9, 8], fill=255)),
    "middle": (lambda x: geometry.center_crop(x, (20, 25)), lambda x: F.center_crop(x, [20, 25])),
    "middle and edge": (lambda x: geometry.center_crop(x, (44, 60)), lambda x: F.center_crop(x, [44, 60])),
}


def images():
    torch.manual_seed(0)
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8)
    return [image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1), image[:1], image.float()]


def boxes(count):
    torch.manual_seed(1)
    corner = torch.rand(count, 2) * 40
    return torch.cat((corner, corner + torch.rand(count, 2) * 20), dim=1)


@pytest.mark.parametrize("move", MOVES)
def test_images(move):
    ours, theirs = MOVES[move]
    for image in images():
        got, wanted = ours(image), theirs(image)
        assert torch.equal(got, wanted)
        assert got.dtype == wanted.dtype
        if move != "resized crop":  # which keeps the layout of the image
            assert got.stride() == wanted.stride()  # the layout decides how fast the next step is


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("count", [0, 5])
def test_boxes(move, count):
    ours, theirs = MOVES[move]
    values = boxes(count)
    given = values.clone()
    got = ours(Boxes(values, SIZE))
    wanted = theirs(tv_tensors.BoundingBoxes(given, format="XYXY", canvas_size=SIZE))
    assert torch.equal(got.values, wanted.as_subclass(torch.Tensor))
    assert got.size == wanted.canvas_size
    assert torch.equal(values, given)  # nothing is changed in place


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3,)])
def test_masks(move, kind, shape):
    ours, theirs = MOVES[move]
    torch.manual_seed(2)
    values = torch.randint(2, (*shape, *SIZE)).to(kind)
    got, wanted = ours(Masks(values)), theirs(tv_tensors.Mask(values)).as_subclass(torch.Tensor)
    assert got.values.dtype == kind
    assert got.values.shape == wanted.shape
    assert torch.equal(got.values, wanted)
    assert size_of(got) == tuple(wanted.shape[-2:])


@pytest.mark.parametrize("size", [(37, 53), (53, 37), (40, 40), (7, 300)])
def test_the_short_side_decides(size):
    assert covered(size, 21) == tuple(F.resize(torch.empty(3, *size), [21]).shape[1:])


@pytest.mark.parametrize("settings", [(0.4, 0.4, 0.4, 0.1), (1.5, 0.0, 0.2, 0.5), (0.0, 0.0, 0.0, 0.0)])
def test_colours_are_jittered_draw_by_draw(settings):
    ours, theirs = ColorJitter(*settings), v2.ColorJitter(*settings)
    picture = to_pillow(images()[0])
    for seed in range(8):
        pixels, states = [], []
        for jitter in (ours, theirs):
            torch.manual_seed(seed)
            changed = jitter(picture)
            assert isinstance(changed, Image.Image)
            pixels.append(changed.tobytes())
            states.append(torch.get_rng_state())
        assert pixels[0] == pixels[1]
        assert torch.equal(*states)
