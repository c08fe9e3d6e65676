"""Label maps and objects follow their image; a batch of images of different sizes tells their true sizes."""

import pytest
import torch

from tetravit.data.augment import parse
from tetravit.data.collate import collate
from tetravit.data.prepare import transformed
from tetravit.data.preprocess import eval_transform, fitted
from tetravit.structures import COCO_INPUT, Sample, Target


def picture(height: int, width: int) -> torch.Tensor:
    """Columns that count up, so that a mirrored image is another one."""
    return torch.arange(width, dtype=torch.uint8).expand(3, height, width).contiguous()


def test_a_label_map_is_mirrored_with_its_image():
    labels = torch.arange(6).expand(4, 6).contiguous()
    sample = transformed(Sample(picture(4, 6), labels, "a"), parse("flip(1.0)"))
    assert torch.equal(sample.target, labels.flip(1))
    assert type(sample.target) is torch.Tensor
    assert torch.equal(sample.image[0, 0].argsort(), torch.arange(6).flip(0))


def test_objects_are_mirrored_and_those_of_nothing_go():
    target = Target(
        boxes=torch.tensor([[0.0, 0.0, 2.0, 4.0], [3.0, 1.0, 3.0, 2.0], [3.0, 1.0, 3.5, 2.0]]),
        labels=torch.tensor([5, 6, 7]),
        masks=torch.zeros(3, 4, 6, dtype=torch.bool).index_fill_(2, torch.tensor([0, 1]), True),
        crowd=torch.tensor([True, False, False]),
    )
    got = transformed(Sample(picture(4, 6), target, "a"), parse("flip(1.0)")).target
    assert got.boxes.tolist() == [[4.0, 0.0, 6.0, 4.0], [2.5, 1.0, 3.0, 2.0]]  # half a pixel is something
    assert got.labels.tolist() == [5, 7]
    assert got.crowd.tolist() == [True, False]
    assert got.masks[0].any(dim=0).tolist() == [False] * 4 + [True] * 2
    assert target.boxes.shape == (3, 4)  # what the data set gave is as it was


def test_objects_that_shrink_below_a_pixel_stay():
    target = Target(torch.tensor([[10.0, 10.0, 14.0, 40.0]]), torch.tensor([0]))
    got = transformed(Sample(picture(80, 120), target, "a"), parse("fit(16, 24)")).target
    torch.testing.assert_close(got.boxes, torch.tensor([[2.0, 2.0, 2.8, 8.0]]))


def test_objects_that_are_cut_off_go():
    target = Target(torch.tensor([[0.0, 0.0, 4.0, 4.0], [60.0, 40.0, 80.0, 60.0]]), torch.tensor([0, 1]))
    got = transformed(
        Sample(picture(80, 120), target, "a"), parse("multiscale((40,), 60, (80,), (20, 20), 1)")
    )
    height, width = got.image.shape[1:]
    assert len(got.target.boxes) <= 1  # a part of 20 x 20 pixels holds one of them at most
    assert (got.target.boxes <= torch.tensor([width, height, width, height])).all()


def test_without_masks_there_are_none_afterwards():
    target = Target(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([0]))
    assert transformed(Sample(picture(4, 6), target, "a"), parse("flip(1.0)")).target.masks is None


def test_images_of_several_sizes_are_filled_up():
    samples = [
        Sample(torch.ones(3, h, w), Target(torch.empty(0, 4), torch.empty(0)), "")
        for h, w in ((4, 9), (7, 5))
    ]
    batch = collate(samples, [0, 1])
    assert batch.images.shape == (2, 3, 7, 9)
    assert batch.sizes.tolist() == [[4, 9], [7, 5]]
    assert batch.images[0].sum() == 3 * 4 * 9
    assert batch.images[1, :, :7, :5].all()


def test_label_maps_of_one_size_are_one_tensor():
    samples = [Sample(torch.ones(3, 4, 4), torch.full((4, 4), i), "") for i in range(2)]
    batch = collate(samples, [0, 1])
    assert batch.targets.shape == (2, 4, 4)
    assert batch.sizes is None


def test_images_with_a_class_each_must_have_one_size():
    samples = [Sample(torch.ones(3, h, 4), 0, "") for h in (4, 5)]
    with pytest.raises(ValueError, match="The images of a batch must have one size"):
        collate(samples, [0, 1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((400, 1200), (444, 1333)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_an_image_fits_both_limits(size, expected):
    assert fitted(size, 800, 1333) == expected
    assert eval_transform(COCO_INPUT)(torch.zeros(3, *size, dtype=torch.uint8)).shape == (3, *expected)
