"""Mean and deviation in one place; gray images, images of many bands, and rectangles."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tetravit import create_model
from tetravit.data.config import DataConfig
from tetravit.data.decode import BadImage, decode
from tetravit.data.evaluation import make_eval_loader
from tetravit.data.loader import make_train_loader
from tetravit.data.preprocess import eval_transform, preprocess
from tetravit.recipe import validated
from tetravit.structures import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess


def section(**keys):
    return DataConfig(**{"name": "digits", "image_size": 16, "batch_size": 4, "workers": 0, **keys})


def refusal(**keys):
    with pytest.raises(ValidationError) as error:
        section(**keys)
    return str(error.value.errors()[0]["ctx"]["error"])


# Mean and deviation


@pytest.mark.parametrize(
    ("keys", "mean", "std"),
    [
        ({}, IMAGENET_MEAN, IMAGENET_STD),
        ({"mean": [0.5]}, (0.5, 0.5, 0.5), IMAGENET_STD),
        ({"mean": [0, 0.5, 1], "std": [1]}, (0.0, 0.5, 1.0), (1.0, 1.0, 1.0)),
        ({"augment": "resize | normalize((0, 0, 0), (1, 1, 1))"}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ({"augment": "resize | normalize", "std": [2]}, IMAGENET_MEAN, (2.0, 2.0, 2.0)),
        ({"augment": "resize | normalize((0, 0, 0))", "mean": [0]}, (0.0, 0.0, 0.0), IMAGENET_STD),
        ({"channels": 1}, (GRAY_MEAN,), (GRAY_STD,)),
        ({"channels": 5, "mean": [0.1]}, (0.1,) * 5, (GRAY_STD,) * 5),
    ],
)
def test_training_and_evaluation_are_normalized_alike(keys, mean, std):
    config = section(augment="resize") if "augment" not in keys else section()
    config = section(**{"augment": "resize", **keys})
    assert config.normalization == (mean, std)
    assert (config.preprocess.mean, config.preprocess.std) == (mean, std)
    if config.channels in (None, 1):
        train = next(make_train_loader(config, seed=0).batches())[0]
        first = next(
            iter(make_eval_loader(config.model_copy(update={"mode": "squash"}), split="train"))
        ).images
        assert train.images.shape[1] == first.shape[1] == len(mean)
        whole = make_eval_loader(
            config.model_copy(update={"mode": "squash", "batch_size": 2000}), split="train"
        )
        every = next(iter(whole)).images
        assert all(torch.equal(x, every[i]) for x, i in zip(train.images, train.indices, strict=True))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"mean": [0.5], "augment": "normalize((0, 0, 0))"},
            "normalize in data.augment says mean [0.0, 0.0, 0.0], data.mean [0.5, 0.5, 0.5]; leave one of them out.",
        ),
        ({"mean": [0.1, 0.2]}, "data.mean has one value per channel: 3; got 2."),
        ({"std": [0.0]}, "data.std is above 0; got [0.0, 0.0, 0.0]."),
        (
            {"channels": 1, "augment": "normalize((0, 0, 0), (1, 1, 1))"},
            "normalize in data.augment has 3 values of mean for images of 1 channel.",
        ),
        (
            {"channels": 5, "augment": "randaugment(2, 9)"},
            "RandAugment in data.augment works on images of 1 or 3 channels; data.channels is 5.",
        ),
        (
            {"image_size": [32, 64], "mode": "fit"},
            "data.mode=fit keeps the ratio of an image: give data.short, one number; got data.image_size=[32, 64].",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(keys, text):
    assert refusal(**keys) == text


def test_views_are_normalized_as_the_images():
    views = ["resize | normalize((0, 0, 0), (1, 1, 1))"]
    with pytest.raises(ValueError, match="All views of an image are normalized alike; got 'resize"):
        make_train_loader(section(), seed=0, views=views)
    make_train_loader(section(mean=[0.0], std=[1.0]), seed=0, views=views)


# Gray, and many bands

GRAY = "crop | flip | randaugment(2, 9) | color(0.4, hue=0.1) | three_augment | distort | erase(0.5)"


def test_gray_images_go_through_every_augmentation():
    (batch,) = next(make_train_loader(section(channels=1, augment=GRAY), seed=0).batches())
    assert batch.images.shape == (4, 1, 16, 16)


def picture(shape=(20, 30, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_gray_is_pillows(tmp_path, ending):
    file = tmp_path / f"x.{ending}"
    Image.fromarray(picture()).save(file)
    with Image.open(file) as image:
        wanted = np.asarray(image.convert("L")).astype(int)
    found = decode(file, channels=1)
    assert found.shape == (1, 20, 30)
    assert abs(found[0].numpy().astype(int) - wanted).max() <= (
        0 if ending == "png" else 2
    )  # two JPEG decoders
    level = tmp_path / "gray.png"
    Image.fromarray(picture((20, 30))).save(level)
    assert (decode(level, channels=1)[0].numpy() == picture((20, 30))).all()


def test_bands_of_a_file(tmp_path):
    bands = picture((4, 6, 5))
    pages = [Image.fromarray(bands[..., i]) for i in range(5)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    np.save(tmp_path / "last.npy", bands)
    np.save(tmp_path / "first.npy", bands.transpose(2, 0, 1))
    np.save(tmp_path / "floats.npy", bands / 255.0)
    for name in ("x.tif", "last.npy", "first.npy", "floats.npy"):
        found = decode(tmp_path / name, channels=5)
        assert (found.numpy() == bands.transpose(2, 0, 1)).all(), name
    Image.fromarray(picture((4, 6, 4)), "RGBA").save(tmp_path / "rgba.png")
    assert (decode(tmp_path / "rgba.png", channels=4).numpy() == picture((4, 6, 4)).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("x.png", "it has 3 bands and 1 pages; data.channels is 5"),
        ("x.npy", "it is an array (4, 6, 3); data.channels is 5"),
    ],
)
def test_another_number_of_bands_is_refused(tmp_path, name, cause):
    file = tmp_path / name
    np.save(file, picture((4, 6, 3))) if name.endswith("npy") else Image.fromarray(picture()).save(file)
    with pytest.raises(BadImage) as error:
        decode(file, channels=5)
    assert error.value.cause == cause


def test_a_folder_of_many_bands(tmp_path):
    for part in ("train", "val"):
        for i, name in enumerate("ab"):
            (tmp_path / part / name).mkdir(parents=True)
            np.save(tmp_path / part / name / "1.npy", picture((8, 8, 5), i))
    config = section(name="image_folder", root=tmp_path, channels=5, batch_size=2)
    (batch,) = next(make_train_loader(config, seed=0).batches())
    assert batch.images.shape == (2, 5, 16, 16)
    assert next(iter(make_eval_loader(config))).images.shape == (2, 5, 16, 16)


@pytest.mark.parametrize("image", [picture((20, 30)), picture(), picture()[None, ..., 0], picture() / 255.0])
def test_preprocess_gives_what_the_model_takes(image):
    image = torch.from_numpy(image) if image.shape[0] == 1 else image
    gray = Preprocess(size=16, mean=(0.4,), std=(0.2,))
    assert preprocess(image, gray).shape == (1, 16, 16)
    assert preprocess(image, Preprocess(size=16)).shape == (3, 16, 16)
    assert preprocess(Image.fromarray(picture()), gray).shape == (1, 16, 16)


def test_preprocess_of_gray_floats_and_bytes_agree():
    gray = Preprocess(size=16, mean=(0.4,), std=(0.2,))
    assert (preprocess(picture(), gray) - preprocess(picture() / 255.0, gray)).abs().max() < 0.05


def test_a_model_of_one_channel_prepares_gray_images():
    model = create_model("xcit_nano_12_p16", in_chans=1, depth=1, image_size=32)
    assert model.preprocess(Image.fromarray(picture())).shape == (1, 32, 32)


def test_data_follow_the_channels_of_the_model():
    table = {
        "epochs": 1,
        "task": {"name": "classify"},
        "model": {"name": "deit_tiny", "options": {"in_chans": 1}},
        "data": {"name": "digits", "batch_size": 4, "image_size": 32},
        "optim": {"warmup_epochs": 0},
    }
    assert validated(table).data.channels == 1
    table["data"]["channels"] = 3
    with pytest.raises(ValueError) as error:
        validated(table)
    assert str(error.value) == "model.options.in_chans and data.channels are one number; got 1 and 3."


# Rectangles


@pytest.mark.parametrize("augment", ["crop", "resize", "center_crop", "pad_crop", "affine(5)", "cut | fill"])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_rectangles(augment, mode):
    size = (4, 6) if augment == "pad_crop" else (12, 20)
    config = section(
        image_size=size, augment=f"{augment} | resize" if augment == "affine(5)" else augment, mode=mode
    )
    (batch,) = next(make_train_loader(config, seed=0).batches())
    assert batch.images.shape == (4, 3, *size)
    assert next(iter(make_eval_loader(config))).images.shape == (4, 3, *size)
    assert config.preprocess.sides == config.canvas(4) == size


def test_a_rectangle_is_cut_from_the_middle():
    ramp = torch.arange(60).repeat(40, 1).expand(3, -1, -1).to(torch.uint8)  # (3, 40, 60)
    p = Preprocess(size=(20, 20), crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    square = eval_transform(p)(ramp)
    assert torch.equal(
        square, eval_transform(Preprocess(size=20, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3))(ramp)
    )
    wide = eval_transform(Preprocess(size=(10, 30), crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3))(ramp)
    assert wide.shape == (3, 10, 30)
    assert wide[0, 0, 0] * 255 < 3  # the whole width is kept
    assert wide[0, 0, -1] * 255 > 56
