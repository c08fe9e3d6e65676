"""Maps lie where the model's tokens lie, back through crop and resizing to the original picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from tetravit.data.preprocess import preprocess, resized
from tetravit.draw.heat import figure, matrix, scale_of
from tetravit.explainers import explain
from tetravit.explainers.base import Map
from tetravit.explainers.parts.pictures import over
from tetravit.explainers.parts.view import resampled, uncropped, view_of, whole_input
from tetravit.models import create_model
from tetravit.structures import Preprocess

INPUTS = {
    "crop": Preprocess(size=64),
    "all": Preprocess(size=64, crop=1.0),
    "rectangle": Preprocess(size=(48, 80)),
    "squash": Preprocess(size=64, mode="squash"),
    "fit": Preprocess(size=64, mode="fit", longest=90),
}
PICTURES = [(100, 100), (120, 200), (301, 157), (64, 64)]  # height, width


def spot(grid, row, column, stride, centre):
    values = torch.zeros(grid)
    values[row, column] = 1
    return Map(values, "spot", stride=stride, centre=centre)


@pytest.mark.parametrize("p", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("size", PICTURES, ids=str)
def test_a_pixel_of_the_picture_is_where_the_view_says(p, size):
    """A bright square of the picture is bright at the place of the model's input that `to_input` gives."""
    view = view_of(size, p)
    left, top, right, bottom = view.seen
    x, y = round(left + 0.6 * (right - left)), round(top + 0.4 * (bottom - top))
    image = torch.zeros(3, *size)
    image[:, y - 4 : y + 5, x - 4 : x + 5] = 1
    made = preprocess(image, p)
    assert tuple(made.shape[1:]) == view.sides
    weight = (made[0] - made[0].min()).clamp(min=0)
    places = [torch.arange(side, dtype=torch.float32) for side in view.sides]
    centre = [float((weight.sum(dim=1 - axis) * places[axis]).sum() / weight.sum()) for axis in (1, 0)]
    assert list(view.to_input(x, y)) == pytest.approx(centre, abs=0.6)


@pytest.mark.parametrize("p", INPUTS.values(), ids=INPUTS)
def test_sizes_are_those_of_the_resizing(p):
    for size in [*PICTURES, (97, 331), (333, 334)]:
        short = [64] if p.mode == "center" and p.crop == 1.0 and isinstance(p.size, int) else None
        if short:
            assert resized(size, p) == tuple(F.resize(torch.zeros(3, *size), short).shape[1:])
        assert preprocess(torch.zeros(3, *size), p).shape[1:] == torch.Size(view_of(size, p).sides)


@pytest.mark.parametrize(("stride", "centre"), [(16, 7.5), (16, 0.0), (8, 3.5), (32, 0.0)])
def test_a_token_is_painted_around_its_centre(stride, centre):
    """The middle of mass of one token's values is its centre; the authors' blocks lie (stride - 1) / 2 further."""
    view = whole_input((160, 160))
    one = spot((160 // stride, 160 // stride), 2, 3, stride, centre)
    places = torch.arange(160, dtype=torch.float32)
    for how, moved in (("smooth", 0.0), ("blocks", 0.0), ("published", (stride - 1) / 2 - centre)):
        values, defined = view.paint(one, how=how)
        assert defined.all()
        row = float((values.sum(dim=1) * places).sum() / values.sum())
        column = float((values.sum(dim=0) * places).sum() / values.sum())
        expected = [stride * 2 + centre + moved, stride * 3 + centre + moved]
        assert [row, column] == pytest.approx(expected, abs=0.51 if how == "blocks" else 1e-3)


def test_a_bright_square_is_where_the_map_says():
    """Occlusion of a model that sums the brightness finds a square at its place in the original picture."""
    model = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    model.input = Preprocess(size=112)

    def bright(images):
        value = images.clamp(min=0).mean(dim=(1, 2, 3))
        return torch.stack((value, -value), dim=1)

    model.forward = bright
    picture = np.zeros((150, 260, 3), np.uint8)
    picture[60:80, 150:170] = 255
    found = explain(model, picture, "occlusion", class_=0, square=8)
    painted = found.on_picture()
    y, x = np.unravel_index(np.nanargmax(painted), painted.shape)
    assert 60 <= y < 80
    assert 150 <= x < 170
    weight = np.nan_to_num(painted).clip(0)
    middle = [(weight.sum(1 - axis) * np.arange(weight.shape[axis])).sum() / weight.sum() for axis in (0, 1)]
    assert middle == pytest.approx([69.5, 159.5], abs=2)
    assert np.isnan(painted[:, :50]).all()
    assert found.view.share == pytest.approx(found.to_dict()["view"]["share"], abs=1e-4)


def test_what_is_cropped_is_shaded_and_what_is_cut_off_stays_unpainted():
    picture = np.full((100, 200, 3), 200, np.uint8)
    view = view_of((100, 200), Preprocess(size=64, crop=1.0))
    one = spot((2, 2), 0, 0, 31, 15.0)  # floor: the last 2 pixels of 64 belong to no token
    shown = np.asarray(over(picture, view, one, scale_of(one.values.numpy())))
    assert (shown[:, :49] == shown[0, 0]).all()
    assert not (shown[0, 0] == picture[0, 0]).all()
    assert (shown[:, 148] == picture[0, 0]).all()  # seen, without a value
    assert view.share == pytest.approx(0.5)


def test_as_published_draws_blocks_of_the_model_s_input():
    model = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    found = explain(model, np.zeros((100, 200, 3), np.uint8), "class-attention")
    assert found.draw(as_published=True).size != found.draw().size
    assert found.draw(mean=True).width < found.draw().width


def test_all_of_the_picture_at_any_size():
    model = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    picture = Image.new("RGB", (200, 100))
    own = explain(model, picture, "class-attention", size="own")
    assert (own.view.sides, own.view.share, own.maps[0].grid) == ((100, 200), 1.0, (7, 13))
    assert explain(model, picture, "class-attention", size=64).view.sides == (64, 128)
    assert uncropped(Preprocess(), 64, (100, 200)).mode == "fit"


def test_maps_of_several_strides_meet_at_the_same_pixels():
    coarse = Map(torch.arange(4.0)[None].expand(4, 4), "", stride=32, centre=15.5)
    fine = Map(torch.zeros(8, 8), "", stride=16, centre=7.5)
    values = resampled(coarse, fine)
    expected = ((torch.arange(8) * 16 + 7.5 - 15.5) / 32).clamp(0, 3)
    torch.testing.assert_close(values, expected[None].expand(8, 8))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((200, 5), "The query (200, 5) lies outside of the picture of 200 x 100 pixels."),
        (
            (3, 50),
            "The query (3, 50) lies in the part of the picture outside the crop: the model's input covers"
            " x 56 to 144, y 6 to 94.",
        ),
    ],
)
def test_a_query_outside_is_one_line(query, message):
    model = create_model("convit_tiny", num_classes=2, depth=2, num_gpsa=1).eval()
    with pytest.raises(ValueError) as error:
        explain(model, Image.new("RGB", (200, 100)), "gated-attention", query=query)
    assert str(error.value) == message


def test_a_query_is_the_nearest_token():
    model = create_model("convit_tiny", num_classes=2, depth=2, num_gpsa=1).eval()
    picture = Image.new("RGB", (256, 256))  # 224 of 256 are kept, at their own size
    for pixel, token in (((16 + 7.5, 16 + 7.5), (0, 0)), ((16 + 40, 16 + 100), (6, 2))):
        found = explain(model, picture, "gated-attention", query=pixel)
        assert found.maps[0].query == token
    assert explain(model, picture, "gated-attention").maps[0].query == (7, 7)


def test_the_query_is_marked_where_its_token_lies():
    view = view_of((400, 600), Preprocess(size=224, crop=1.0))
    one = Map(torch.zeros(14, 14), "gated attention", stride=16, centre=7.5, query=(7, 7))
    assert one.query_box == (112.0, 112.0, 128.0, 128.0)
    scale, left = 400 / 224, 100.0  # 336 columns after resizing, 56 cut off
    expected = (left + 112 * scale, 112 * scale, left + 128 * scale, 128 * scale)
    assert view.to_picture(one.query_box) == pytest.approx(expected)
    other = Map(
        torch.zeros(7, 7), "summary", stride=32, centre=15.5, query=(1, 2), query_stride=4, query_centre=1.5
    )
    assert other.query_box == (8.0, 4.0, 12.0, 8.0)
    assert Map(torch.zeros(2, 2), "gate", query=(0, 0)).query_box is None


def test_small_tables_have_their_numbers_and_large_ones_their_axes():
    values = np.array([[0.25, np.nan], [0.5, 1.0]])
    small = matrix(values, scale_of(values), ("layer", "head"))
    assert small.size == (52 + 2 * 160, 40 + 2 * 24)
    assert len(small.crop((52, 40, 212, 64)).convert("P").getcolors()) > 2  # a number over the colour
    large = matrix(np.eye(32), scale_of(values))
    assert large.size == (320, 340)


def test_panels_may_be_left_empty_and_a_long_heading_widens_the_figure():
    picture = Image.new("RGB", (100, 50), "red")
    panel = (picture, "one", None)
    drawn = figure([panel, None, panel, panel], "a heading " * 10, columns=2)
    assert drawn.width > 2 * (100 + 96)
    assert drawn.getpixel((14 + 196 + 50, 14 + 30 + 26 + 25)) == (255, 255, 255)
