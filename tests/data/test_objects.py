"""How images with objects are resized, cut and grouped for training."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from tetravit.data.augment import parse
from tetravit.data.collate import collate
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.loader import TrainLoader
from tetravit.data.order import Order
from tetravit.data.prepare import transformed
from tetravit.structures import Sample, Target


def sample(height, width):
    """A picture with a dark square that is its object."""
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    y, x = height // 3, width // 4
    image[:, y : y + 40, x : x + 60] = 20
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, y : y + 40, x : x + 60] = True
    box = torch.tensor([[x, y, x + 60, y + 40]], dtype=torch.float32)
    return Sample(image, Target(box, torch.tensor([3]), mask, area=torch.tensor([2400.0])), "a")


@pytest.mark.parametrize(
    ("augment", "images", "canvas"),
    [
        ("flip | multiscale", 1, (800, 1344)),
        ("flip | multiscale", 2, (800, 1344)),  # both wide, or both high
        ("fit(800, 1333) | flip", 3, (1344, 1344)),  # high beside wide
        ("multiscale((480, 640), 600)", 2, (608, 608)),
        ("flip", 9, (96, 96)),
    ],
)
def test_the_largest_canvas_of_a_batch(augment, images, canvas):
    config = DataConfig(
        name="coco", batch_size=16, augment=augment, image_size=96, group=2, bucket=32, workers=0
    )
    assert config.canvas(images) == canvas


def test_fit_keeps_both_limits_and_takes_boxes_and_masks_along():
    got = transformed(sample(240, 320), parse("fit(120, 140)"))
    assert got.image.shape == (3, 105, 140)
    expected = torch.tensor([[80.0, 80.0, 140.0, 120.0]]) * 140 / 320
    torch.testing.assert_close(got.target.boxes, expected)
    assert got.target.masks.shape == (1, 105, 140)
    dark = got.image[0] < 0
    assert (dark != got.target.masks[0]).float().mean() < 0.01


@pytest.mark.parametrize("seed", range(12))
def test_many_scales_keep_image_boxes_and_masks_together(seed):
    torch.manual_seed(seed)
    got = transformed(sample(300, 500), parse("flip | multiscale((96, 128, 160), 240, (100, 120), (60, 90))"))
    height, width = got.image.shape[1:]
    assert min(height, width) in (96, 128, 160) or max(height, width) == 240
    assert max(height, width) <= 240
    for box, mask in zip(got.target.boxes, got.target.masks, strict=True):
        assert ((box >= 0) & (box <= torch.tensor([width, height, width, height]))).all()
        dark = got.image[0] < 0
        assert (dark != mask).float().mean() < 0.03
        rows, columns = torch.nonzero(mask, as_tuple=True)
        around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        torch.testing.assert_close(box, around.float(), atol=3.0, rtol=0)


def test_the_sizes_are_drawn_as_the_authors_do():
    torch.manual_seed(0)
    transform = parse("multiscale").steps[0]
    cut, sizes = 0, set()
    for _ in range(400):
        params = transform.make_params([torch.empty(3, 480, 640)])
        if params["part"] is None:
            sizes.add(params["first"])
            continue
        cut += 1
        assert params["first"] in {(400, 533), (500, 667), (600, 800)}
        _, _, h, w = params["part"]
        assert min(384, params["first"][0]) <= h <= 600
        assert 384 <= w <= 600
    assert 160 < cut < 240
    assert sizes == {(s, int(640 * s / 480 + 0.5)) for s in range(480, 801, 32)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit(0)", "fit takes a size in pixels from 1 up; got 0."),
        ("multiscale(480)", "multiscale takes short as sizes in pixels (480, 512, ...); got 480."),
        ("multiscale(cut=(9, 5))", "multiscale takes cut as (from, to); got (9, 5)."),
        ("multiscale(before=())", "multiscale takes before as sizes in pixels (480, 512, ...); got ()."),
        ("multiscale(p=2)", "multiscale takes a probability from 0 to 1; got 2."),
    ],
)
def test_what_cannot_be_drawn_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        parse(text)
    assert str(error.value) == message


WIDE = np.arange(103) % 3 > 0


def test_every_image_is_drawn_once_in_groups_of_one_kind():
    order = Order(103, 1, 5, wide=WIDE, group=2, micro=8)
    line = [order.image(2, k) for k in range(103)]
    assert sorted(line) == list(range(103))
    mixed = 0
    for start in range(0, 96, 8):
        for i in range(4):  # what a rank of four gets
            a, b = line[start + i], line[start + i + 4]
            mixed += WIDE[a] != WIDE[b]
    assert mixed == 0
    assert line != [Order(103, 1, 5, wide=WIDE, group=2, micro=8).image(3, k) for k in range(103)]
    again = Order(103, 1, 5, wide=WIDE, group=2, micro=8)
    assert again.image(2, 77) == line[77]  # whatever was asked before


class Pictures(Dataset):
    kind = "detect"
    num_classes, class_names = 4, tuple("abcd")

    @property
    def info(self):
        return replace(super().info, wide=WIDE)

    def __len__(self):
        return len(WIDE)

    def __getitem__(self, index):
        height, width = (10, 17) if WIDE[index] else (17, 10)
        target = Target(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
        return Sample(torch.zeros(3, height, width, dtype=torch.uint8), target, str(index))


def loader(**options):
    given = {"batch_size": 8, "seed": 3, "group": 2, "transform": parse("")}
    return TrainLoader(Pictures(), **(given | options))


def test_groups_do_not_depend_on_ranks_or_on_where_one_begins():
    def names(step, **options):
        return [batch[0].names for batch, _ in zip(loader(**options).batches(step), range(3), strict=False)]

    alone = names(5)
    assert names(0)[2] == names(2)[0]
    ranks = [names(5, rank=r, world_size=4) for r in range(4)]
    for i in range(3):
        assert sorted(chain.from_iterable(rank[i] for rank in ranks)) == sorted(alone[i])
        for rank in ranks:
            a, b = (int(name) for name in rank[i])
            assert WIDE[a] == WIDE[b]


def test_batches_are_padded_to_buckets():
    (batch,) = next(loader(bucket=8).batches())
    assert batch.images.shape[2:] == (24, 24)
    assert sorted({tuple(s) for s in batch.sizes.tolist()}) == [(10, 17), (17, 10)]
    same = [Sample(torch.ones(3, 16, 24), Target(torch.empty(0, 4), torch.empty(0)), "")] * 2
    assert collate(same, [0, 1], 8).sizes is None


@pytest.mark.parametrize("options", [{"group": 3}, {"repeats": 2}, {"group": 16}])
def test_groups_must_divide_the_batch(options):
    with pytest.raises(ValueError) as error:
        loader(**options)
    given = {"group": 2, "repeats": 1} | options
    assert str(error.value) == (
        "data.group needs a set with known image sizes, and divides a batch without repeats; got"
        f" group={given['group']}, batch_size=8, accumulate=1, repeats={given['repeats']}; data.group=1"
        " batches images of any orientation."
    )
