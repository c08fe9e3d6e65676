"""Whole images, windows, scales, mirrored images: each against what it is by definition."""

import re
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tetravit.heads.parts import pixels
from tetravit.models.inference import Inference, segment


class Local(nn.Module):
    """Scores of a pixel from that pixel alone: windows cannot change them. calls: images of each call."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.score, self.calls = nn.Conv2d(3, 4, 1), []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return self.score(images)


class Sided(Local):
    """Scores that also depend on where in its image a pixel lies, and on what is left of it."""

    def forward(self, images):
        x = super().forward(images.cumsum(dim=3) / 10)
        return x + torch.arange(images.shape[2])[:, None] / 50


def images(height, width, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 64), (32, 90), (101, 70), (40, 33)])
@pytest.mark.parametrize(("window", "stride"), [(48, None), (48, 48), (32, 7), (200, 100)])
def test_windows_cover_every_pixel(size, window, stride):
    model, x = Local(), images(*size, count=2)
    (whole, other) = segment(model, x, [size] * 2)
    got = segment(model, x, [size] * 2, Inference(window, stride, windows_at_once=3))
    assert torch.equal(got[0], whole)
    assert torch.equal(got[1], other)
    assert max(shape[0] for shape in model.calls[1:]) <= 3


def test_windows_lie_where_the_published_code_puts_them():
    model = Local()
    segment(model, images(64, 90), [(64, 90)], Inference(64, 40, windows_at_once=1))
    assert model.calls == [(1, 3, 64, 64)] * 2
    model.calls.clear()
    segment(model, images(100, 150), [(100, 150)], Inference(64, 43, windows_at_once=4))
    assert model.calls == [(4, 3, 64, 64), (2, 3, 64, 64)]  # 2 rows of 3


def test_logits_are_averaged_where_windows_overlap():
    model, x = Sided(), images(48, 80)
    total, count = torch.zeros(4, 48, 80), torch.zeros(48, 80)
    for y in (0, 16):
        for left in (0, 24, 48):
            total[:, y : y + 32, left : left + 32] += model(x[:, :, y : y + 32, left : left + 32])[0]
            count[y : y + 32, left : left + 32] += 1
    (got,) = segment(model, x, [(48, 80)], Inference(32, 24))
    assert torch.equal(got, (total / count).argmax(dim=0))
    assert (got != segment(model, x, [(48, 80)])[0]).any()


def test_windows_are_averaged_before_probabilities_are():
    """A sum in the place of the mean would count what many windows see for more than its share."""
    model, x = Sided(), images(32, 80)

    def mean(x):
        total, count = torch.zeros(4, 32, 80), torch.zeros(32, 80)
        for left in (0, 8, 16, 24, 32, 40, 48):
            total[:, :, left : left + 32] += model(x[:, :, :, left : left + 32])[0]
            count[:, left : left + 32] += 1
        return total / count

    want = mean(x).softmax(dim=0) + mean(x.flip(3)).softmax(dim=0).flip(2)
    (got,) = segment(model, x, [(32, 80)], Inference(32, 8, flip=True))
    assert torch.equal(got, want.argmax(dim=0))


def looks(model, views, size):
    """Mean probability over scales and mirrored images, by the book."""
    total = 0
    for scaled in views:
        for mirrored in (False, True):
            logits = model(scaled.flip(3) if mirrored else scaled)
            shares = F.interpolate(logits, size, mode="bilinear").softmax(dim=1)
            total = total + (shares.flip(3) if mirrored else shares)
    return total[0].argmax(dim=0)


@pytest.mark.parametrize("band", [2**26, 4 * 70 * 9])
def test_probabilities_are_averaged_over_scales_and_mirrored_images(band, monkeypatch):
    monkeypatch.setattr(pixels, "BAND", band)
    model, size = Sided(), (50, 70)
    views = [images(32, 48), images(64, 96), images(112, 168)]
    (got,) = segment(model, views, [size], Inference(scales=(0.5, 1.0, 1.75), flip=True))
    want = looks(model, views, size)
    assert (got != want).sum() <= 3  # ties
    (once,) = segment(model, views[1], [size])
    assert (once != want).sum() > 100


@pytest.mark.parametrize(("band", "bands"), [(2**26, 1), (4 * 96 * 10, 5)])
def test_the_scores_of_one_look_at_a_time_are_held(band, bands, monkeypatch):
    """Of 12 looks no more than of one: each is added up before the next is brought to the size of the picture."""
    made, held = [], []

    def watched(make):
        def scores(*arguments, **named):
            held.append(sum(x() is not None for x in made))
            x = make(*arguments, **named)
            made.append(weakref.ref(x))
            return x

        return scores

    monkeypatch.setattr(pixels, "BAND", band)
    for name in ("to_picture", "_band"):
        monkeypatch.setattr(pixels, name, watched(getattr(pixels, name)))
    looks = [pixels.View(torch.randn(4, 12, 24), (48, 96), mirrored) for mirrored in (False, True) * 6]
    assert pixels.most_probable(looks, (50, 70)).shape == (50, 70)
    assert held == [0] * 12 * bands


def test_no_scale_goes_below_what_a_backbone_takes():
    model = Local()
    segment(model, [images(20, 50), images(40, 100)], [(40, 100)], Inference(scales=(0.5, 1.0)))
    assert model.calls == [(1, 3, 32, 50), (1, 3, 40, 100)]


@pytest.mark.parametrize("given", [images(64, 96), [images(64, 96)] * 3])
def test_every_scale_has_images_of_its_own(given):
    text = f"images holds a batch for each of the 2 scales; got {1 if torch.is_tensor(given) else 3}."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        segment(Local(), given, [(64, 96)], Inference(scales=(0.5, 1.0)))


@pytest.mark.parametrize("how", [None, Inference(32, 16), Inference(flip=True)])
def test_narrow_images_are_enlarged_to_what_a_backbone_takes(how):
    model = Local()
    (got,) = segment(model, images(2, 70), [(1, 35)], how)
    assert got.shape == (1, 35)
    assert {shape[2] for shape in model.calls} == {32}
    (want,) = segment(model, F.interpolate(images(2, 70), (32, 70), mode="bilinear"), [(1, 35)], how)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"stride": 8}, "stride is the distance between windows: window is needed too."),
        ({"window": 16}, "window is a side from 32 pixels up; got 16."),
        ({"window": 64, "stride": 65}, "stride is 1 to the 64 pixels of the window; got 65."),
        ({"window": 64, "stride": 0}, "stride is 1 to the 64 pixels of the window; got 0."),
        ({"windows_at_once": 0}, "windows_at_once is 1 or more; got 0."),
        ({"scales": ()}, "scales are factors above 0 and at most 8; got []."),
        ({"scales": (1.0, 0.0)}, "scales are factors above 0 and at most 8; got [1.0, 0.0]."),
        ({"flip": "on"}, "flip is True or False; got 'on'."),
    ],
)
def test_invalid_settings_of_inference(arguments, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Inference(**arguments)
