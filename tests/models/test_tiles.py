"""Tiles cover a picture; what several views of it show is one object."""

import pytest
import torch

from tetravit.models.tiles import find_in_tiles, merge, views
from tetravit.structures import Detections


def detections(*rows, masks=None):
    """Rows of x1 y1 x2 y2 score label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long(), masks)


@pytest.mark.parametrize(
    ("size", "side", "stride"), [((100, 250), 64, 50), ((64, 64), 64, 32), ((65, 300), 64, 64)]
)
def test_views_cover_every_pixel(size, side, stride):
    whole, *tiles = views(*size, side, stride)
    assert whole == (0, 0, size[1], size[0])
    if size != (64, 64):
        seen = torch.zeros(size, dtype=torch.bool)
        for x1, y1, x2, y2 in tiles:
            assert (x2 - x1, y2 - y1) == (side, min(side, size[0]))
            seen[y1:y2, x1:x2] = True
        assert seen.all()
    else:
        assert tiles == []


def test_the_same_object_in_two_views_is_one_and_classes_are_told_apart():
    left = ((0, 0, 100, 100), detections((10, 10, 50, 50, 0.8, 1), (10, 10, 50, 50, 0.7, 2)))
    right = ((50, 0, 150, 100), detections((11, 10, 50, 50, 0.9, 1)))
    found = merge([left, right], 100, 150)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    assert found.labels.tolist() == [1, 2]


def test_a_part_gives_way_to_the_whole_even_if_it_is_surer():
    whole = ((0, 0, 200, 100), detections((60, 10, 140, 50, 0.5, 1)))
    part = ((0, 0, 100, 100), detections((60, 10, 100, 50, 0.95, 1), (5, 5, 30, 30, 0.4, 1)))
    found = merge([whole, part], 100, 200)
    assert found.boxes.tolist() == [[60, 10, 140, 50], [5, 5, 30, 30]]
    assert (
        len(merge([part], 100, 200).boxes) == 2
    )  # where nothing stands for it, a part is better than nothing


def test_boxes_and_masks_are_put_back_in_their_places():
    picture = torch.zeros(3, 100, 250, dtype=torch.uint8)
    picture[0, 40:52, 170:190] = 255

    def find(parts):
        asked.append({tuple(part.shape) for part in parts})
        return [look(part) for part in parts]

    def look(part):
        y, x = torch.nonzero(part[0], as_tuple=True)
        if not len(x):
            return detections(masks=torch.empty(0, 28, 28))
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1, 0.9, 0)
        return detections(box, masks=torch.ones(1, 28, 28))

    for batch, calls in ((1, 11), (4, 4), (100, 2)):  # the whole picture, and 2 x 5 tiles
        asked = []
        found = find_in_tiles(find, picture, 64, 48, batch)
        assert found.boxes.tolist() == [[170, 40, 190, 52]]
        assert found.masks.shape == (1, 28, 28)
        assert len(asked) == calls
        assert all(len(shapes) == 1 for shapes in asked)


@pytest.mark.slow
def test_a_huge_picture_may_hold_thousands_of_objects():
    x, y = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    corner = 100 * torch.stack((x.flatten(), y.flatten()), dim=1)
    boxes = torch.cat((corner, corner + 50), dim=1)
    view = (0, 0, 6000, 6000)
    twice = [(view, Detections(boxes, torch.rand(3600), torch.zeros(3600).long())) for _ in range(2)]
    found = merge(twice, 6000, 6000)
    assert sorted(found.boxes.tolist()) == boxes.tolist()
