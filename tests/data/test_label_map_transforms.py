"""Image and label map through the pipeline of the published segmenters."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from tetravit.data.augment import parse
from tetravit.data.geometry import Masks
from tetravit.data.prepare import transformed
from tetravit.data.shapes import draw
from tetravit.data.transforms import TRANSFORMS
from tetravit.structures import Sample

PUBLISHED = "rescale(512, 2048, (0.5, 2.0)) | cut(512, 0.75) | flip | distort | fill(512)"


def drawn(size=64):
    found = draw(0, size=size)
    return Sample(torch.from_numpy(found.image).permute(2, 0, 1), torch.from_numpy(found.labels), "a")


def checker(height, width, cell=4):
    """An image whose red is its label, so that one tells where the other came from."""
    y, x = torch.meshgrid(torch.arange(height) // cell, torch.arange(width) // cell, indexing="ij")
    labels = ((y * 7 + x * 3) % 11).to(torch.uint8)
    return torch.stack([labels * 20] * 3), labels


def test_the_published_pipeline_gives_squares_whatever_comes_in():
    augment = parse(PUBLISHED)
    for seed, size in enumerate(((1, 1), (40, 300), (700, 200))):
        torch.manual_seed(seed)
        image, labels = checker(*size)
        got = transformed(Sample(image, labels, ""), augment)
        assert got.image.shape == (3, 512, 512)
        assert got.image.dtype == torch.float32
        assert got.target.shape == (512, 512)
        assert got.target.dtype == torch.uint8


def test_the_same_seed_gives_the_same_sample():
    augment = parse("rescale(64, 256, (0.5, 2.0)) | cut(48) | flip | distort | fill(48)")
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(transformed(drawn(), augment))
    assert torch.equal(runs[0].image, runs[1].image)
    assert torch.equal(runs[0].target, runs[1].target)
    assert not torch.equal(runs[0].target, runs[2].target)


def test_sizes_are_scaled_as_published():
    """Both limits times the factor, cut to whole pixels; then the ratio is kept and sides are rounded."""
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        factor = 0.5 + 1.5 * float(torch.rand(()))
        short, longest = int(512 * factor), int(2048 * factor)
        scale = min(short / 100, longest / 300)
        torch.manual_seed(seed)
        got = TRANSFORMS["rescale"](512, 2048, (0.5, 2.0))(torch.zeros(3, 100, 300, dtype=torch.uint8))
        assert got.shape[1:] == (int(100 * scale + 0.5), int(300 * scale + 0.5))
        sizes.add(got.shape[1])
    assert len(sizes) > 10
    assert min(sizes) >= 256
    assert max(sizes) <= 1024


def test_labels_are_resized_by_the_nearest_and_images_without_smoothing():
    image, labels = checker(40, 60)
    got, mask = TRANSFORMS["rescale"](20, 999, (1.0, 1.0))(image, Masks(labels))
    assert torch.equal(mask.values, labels[::2, ::2])
    bilinear = torch.nn.functional.interpolate(image[None].float(), (20, 30), mode="bilinear")[0]
    assert (got.float() - bilinear).abs().max() <= 1


def test_a_cut_moves_labels_with_their_image():
    image, labels = checker(60, 80)
    for seed in range(5):
        torch.manual_seed(seed)
        got, mask = TRANSFORMS["cut"](24)(image, Masks(labels))
        assert mask.values.shape == (24, 24)
        assert torch.equal(got[0], mask.values * 20)
    got, mask = TRANSFORMS["cut"](70)(image, Masks(labels))
    assert got.shape == (3, 60, 70)


def test_a_cut_avoids_what_shows_one_class():
    """Half the image is class 0: cuts that it fills are drawn again, also where the rest carries no class."""
    labels = torch.zeros(40, 200, dtype=torch.uint8)
    labels[:, 100:] = 1
    labels[:, :20] = 255
    image = torch.zeros(3, 40, 200, dtype=torch.uint8)

    def mixed(most):
        found = 0
        for seed in range(60):
            torch.manual_seed(seed)
            _, mask = TRANSFORMS["cut"](40, most)(image, Masks(labels))
            counts = mask.values.flatten().bincount(minlength=256)[:2]
            found += int(counts.max() < 0.75 * counts.sum())
        return found

    assert mixed(1.0) < 25
    assert mixed(0.75) > 40
    labels[:] = 0
    assert mixed(0.75) == 0  # after ten more draws the last one is taken


def test_filling_up_ignores_what_is_added():
    image, labels = checker(10, 12)
    image = image.float()
    got, mask = TRANSFORMS["fill"](16)(image, Masks(labels))
    assert torch.equal(got[:, :10, :12], image)
    assert torch.equal(mask.values[:10, :12], labels)
    assert got[:, 10:].abs().sum() + got[:, :, 12:].abs().sum() == 0
    assert mask.values[10:].unique().tolist() == mask.values[:, 12:].unique().tolist() == [255]


def test_the_fill_comes_after_normalize():
    assert [type(step).__name__ for step in parse(PUBLISHED).steps][-2:] == ["Normalize", "Fill"]
    with pytest.raises(ValueError, match="flip works on pixels; put it before fill"):
        parse("fill(8) | flip")


def turned(image, **params):
    """One distortion with what would be drawn given."""
    given = {"brightness": 0.0, "late": False, "contrast": 1.0, "saturation": 1.0, "hue": 0, **params}
    return TRANSFORMS["distort"]().transform(image, given)


def test_colours_are_shifted_as_published():
    image = torch.tensor([[200, 10], [100, 0], [50, 255]], dtype=torch.uint8)[:, None]  # (3, 1, 2)
    assert torch.equal(turned(image), image)
    assert turned(image, brightness=70.9)[:, 0].tolist() == [[255, 80], [170, 70], [120, 255]]
    assert turned(image, contrast=0.55)[:, 0].tolist() == [[110, 5], [55, 0], [27, 140]]
    both = {"contrast": 0.5, "saturation": 0.0}
    assert turned(image, **both)[:, 0].tolist() == turned(image, late=True, **both)[:, 0].tolist()
    grey = turned(image, saturation=0.0)
    assert grey[:, 0].tolist() == [[200, 255]] * 3  # the brightest channel is the value
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    assert turned(red, hue=60).flatten().tolist() == [0, 255, 0]  # a third of the circle
    back = turned(red, hue=-60).flatten().tolist()
    assert (back[1:], back[0] < 8) == ([0, 255], True)  # Pillow has 256 hues, which 3 does not divide


def test_hue_and_saturation_follow_the_colour_circle():
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    got = turned(image, hue=12).float()
    want = F.adjust_hue(image, 12 / 180).float()
    assert (got - want).abs().mean() < 2  # Pillow counts hues in 256 steps


def test_labels_keep_their_numbers_through_colours():
    sample = drawn()
    torch.manual_seed(1)
    image, mask = TRANSFORMS["distort"]()(sample.image, Masks(sample.target))
    assert torch.equal(mask.values, sample.target)
    assert not torch.equal(image, sample.image)
    assert isinstance(Image.fromarray(image.permute(1, 2, 0).numpy()), Image.Image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rescale(0)", "rescale takes a size in pixels from 1 up; got 0."),
        ("rescale(512, 2048, (2.0, 0.5))", "rescale takes ratio as (from, to), 0.01 to 100; got (2.0, 0.5)."),
        ("cut(0)", "cut takes a size in pixels from 1 up; got 0."),
        ("cut(8, 2)", "cut takes most, 0 to 1; got 2."),
        ("distort(hue=91)", "distort takes hue, 0 to 90; got 91."),
        ("fill('a')", "fill takes a size in pixels from 1 up; got 'a'."),
    ],
)
def test_wrong_arguments(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)
