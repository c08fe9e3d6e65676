"""One picture, given in any form, becomes the same tensor; and the tensor is the one the papers evaluate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tetravit.data.decode import BadImage
from tetravit.data.preprocess import eval_transform, fitted, preprocess, scaled
from tetravit.structures import ADE20K_INPUT, IMAGENET_MEAN, IMAGENET_STD, Preprocess

PHOTO = load_sample_image("flower.jpg")[50:250, 100:400]  # (200, 300, 3)
SMALL = Preprocess(size=96)


def test_every_form_of_a_picture_gives_the_same_tensor(tmp_path):
    path = tmp_path / "flower.png"
    Image.fromarray(PHOTO).save(path)
    tensor = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)
    expected = eval_transform(SMALL)(tensor)
    assert expected.shape == (3, 96, 96)
    assert expected.dtype == torch.float32
    assert expected.is_contiguous()
    for form in (path, str(path), Image.fromarray(PHOTO), PHOTO, tensor, tensor.contiguous()):
        assert torch.equal(preprocess(form, SMALL), expected)
    for form in (PHOTO.astype(np.float32) / 255, tensor / 255):
        assert (
            preprocess(form, SMALL) - expected
        ).abs().max() < 0.06  # three of 255; no rounding to bytes after the resize


@pytest.mark.parametrize("channels", [1, 3])
def test_an_open_picture_is_read_as_its_file(tmp_path, channels):
    deep = (PHOTO[..., 0].astype(np.uint16) * 257) // 3
    clear = np.dstack([PHOTO, 255 - PHOTO[..., 1]])
    p = replace(SMALL, mean=(0.5,) * channels, std=(0.5,) * channels)
    for name, array in (("deep", deep), ("clear", clear)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        assert torch.equal(preprocess(Image.open(path), p), preprocess(path, p)), name


def test_gray_pictures():
    gray = PHOTO[..., 0]
    expected = preprocess(np.stack([gray] * 3, axis=-1), SMALL)
    for form in (gray, Image.fromarray(gray), torch.from_numpy(gray.copy())[None]):
        assert torch.equal(preprocess(form, SMALL), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop"), [(96, 0.875), (112, 1.0), (90, 0.9), (60, 0.95)])
@pytest.mark.parametrize("turn", [False, True])
def test_it_is_the_evaluation_of_timm(size, crop, interpolation, turn):
    picture = PHOTO.swapaxes(0, 1).copy() if turn else PHOTO
    theirs = create_transform(
        size,
        crop_pct=crop,
        interpolation=interpolation,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        is_training=False,
    )(Image.fromarray(picture))
    ours = preprocess(picture, Preprocess(size=size, crop=crop, interpolation=interpolation))
    steps = (ours - theirs).abs() * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
    assert steps.max() <= 2.1  # of 255: Pillow and torch round differently
    assert steps.mean() < 0.1


def test_squash_keeps_everything():
    out = preprocess(PHOTO, Preprocess(size=64, mode="squash", crop=0.5))
    theirs = np.asarray(Image.fromarray(PHOTO).resize((64, 64), Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert ((out * std + mean) * 255 - torch.from_numpy(theirs.copy()).permute(2, 0, 1)).abs().max() <= 2.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (8, 8)])
def test_odd_shapes(shape):
    assert preprocess(np.zeros((*shape, 3), dtype=np.uint8), Preprocess(size=32)).shape == (3, 32, 32)


TAKES = (
    "An image tensor is (3, Hi, Wi) or (1, Hi, Wi), an array (Hi, Wi, 3) or (Hi, Wi),"
    " uint8 or float in [0, 1]; got {}."
)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (torch.zeros(2, 3, 8, 8), TAKES.format("(2, 3, 8, 8) float32")),
        (torch.zeros(8, 8, 3), TAKES.format("(8, 8, 3) float32")),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TAKES.format("(3, 8, 8) int64")),
        (np.zeros((8, 8, 4), dtype=np.uint8), TAKES.format("(4, 8, 8) uint8")),
        (torch.zeros(3, 0, 8), TAKES.format("(3, 0, 8) float32")),
        (7, "An image is a path, a Pillow image, an array or a tensor; got int."),
    ],
)
def test_what_is_no_picture(image, text):
    with pytest.raises(ValueError) as caught:
        preprocess(image, SMALL)
    assert str(caught.value) == text


def test_a_missing_file(tmp_path):
    with pytest.raises(BadImage, match="no such file or directory"):
        preprocess(tmp_path / "cat.jpg", SMALL)


@pytest.mark.parametrize(
    ("scale", "limits", "size"),
    [  # of 1000 x 1333 and 700 x 3000 pixels, for img_scale=(2048, 512) times the ratio
        (0.5, (256, 1024), [(256, 341), (239, 1024)]),
        (0.75, (384, 1536), [(384, 512), (358, 1536)]),
        (1.0, (512, 2048), [(512, 682), (478, 2048)]),
        (1.25, (640, 2560), [(640, 853), (597, 2560)]),
        (1.75, (896, 3584), [(896, 1194), (836, 3584)]),
    ],
)
def test_each_scale_is_made_from_the_original(scale, limits, size):
    """Not from the image at another scale: twice resized is another image."""
    p = scaled(ADE20K_INPUT, scale)
    assert (p.size, p.longest) == limits
    assert [fitted(original, p.size, p.longest) for original in ((1000, 1333), (700, 3000))] == size
    pixels = torch.randint(256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = replace(ADE20K_INPUT, size=64, longest=80)
    wanted = list(fitted((90, 120), int(64 * scale), int(80 * scale)))
    direct = F.resize(pixels, wanted, interpolation=InterpolationMode.BILINEAR, antialias=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (p.mean, p.std))
    got = preprocess(pixels, scaled(small, scale))
    torch.testing.assert_close(got, (direct / 255 - mean) / std, atol=1e-5, rtol=0)
    if scale != 1:
        twice = torch.nn.functional.interpolate(preprocess(pixels, small)[None], wanted, mode="bilinear")[0]
        assert (got - twice).abs().max() > 0.5


def test_without_a_limit_of_the_long_side_there_is_none_at_any_scale():
    assert scaled(Preprocess(size=101, mode="fit"), 0.5) == Preprocess(size=50, mode="fit")
    assert scaled(Preprocess(size=1), 0.1).size == 1
