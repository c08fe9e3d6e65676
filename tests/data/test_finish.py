"""Batches that stay uint8 until they are on their device have the values of those that workers finish."""

import pytest
import torch

from tetravit.data.config import DataConfig
from tetravit.data.loader import make_train_loader

TEXTS = {
    "crop | flip": "crop | flip",
    "heavy": "crop | flip | randaugment(2, 9) | erase(0.9)",
    "twice": "crop | erase(0.9) | erase(0.9)",
    "normalize": "resize | normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.3])",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("workers", [0, 1])
def test_bit_for_bit(text, workers):
    if workers and "randaugment" not in text:
        pytest.skip("one text is enough")
    config = DataConfig(name="digits", batch_size=16, image_size=32, workers=workers, augment=text)
    now = make_train_loader(config, seed=3, accumulate=2)
    now._prepare.finish = "image"
    together = make_train_loader(config, seed=3, accumulate=2)
    assert together._prepare.finish == "batch"
    later = make_train_loader(config, seed=3, accumulate=2, finish_later=True)
    batches = (next(loader.batches(5)) for loader in (now, together, later))
    for one, same, other in zip(*batches, strict=True):
        assert torch.equal(one.images, same.images)
        assert same.images.is_contiguous()
        assert same.finish is None
        assert same.images.is_shared() == bool(workers)
        assert other.images.dtype == torch.uint8
        finished = other.to("cpu")
        assert finished.finish is None
        assert torch.equal(one.images, finished.images)
        assert finished.to("cpu").images is not None  # a second time changes nothing
        assert torch.equal(finished.to("cpu").images, one.images)
        assert finished.images.is_contiguous()
    for loader in (now, together, later):
        loader.close()


def test_views():
    config = DataConfig(name="digits", batch_size=8, image_size=32, workers=0)
    views = ["crop(32) | flip", "crop(16) | erase(0.9)"]
    now, together = (make_train_loader(config, seed=0, views=views) for _ in range(2))
    now._prepare.finish = "image"
    (one,), (same,) = next(now.batches()), next(together.batches())
    (other,) = next(make_train_loader(config, seed=0, views=views, finish_later=True).batches())
    for moved in (same, other.to("cpu")):
        assert torch.equal(moved.images, one.images)
        assert torch.equal(moved.views[0].images, one.views[0].images)


def test_filled_up_images_stay_zero_outside():
    config = DataConfig(
        name="shapes_det",
        batch_size=4,
        image_size=64,
        bucket=48,
        workers=0,
        augment="flip",
        options={"size": 64, "count": 8},
    )
    (one,) = next(make_train_loader(config, seed=0).batches())
    (other,) = next(make_train_loader(config, seed=0, finish_later=True).batches())
    assert one.images.shape[-2:] == (96, 96)
    assert torch.equal(other.to("cpu").images, one.images)


def test_what_cannot_wait_is_finished_at_once():
    config = DataConfig(
        name="shapes_det",
        batch_size=4,
        image_size=64,
        workers=0,
        augment="erase(0.5)",
        options={"size": 64, "count": 8},
    )
    with pytest.raises(ValueError, match="Erase moves pixels only"):
        next(make_train_loader(config, seed=0, finish_later=True).batches())
