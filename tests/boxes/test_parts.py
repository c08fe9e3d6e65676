"""Every part of a detector against the answers of mmdet 2.28.2."""

import pytest
import torch
from dense import weights
from dense.answers import inscribed_ellipses, units, unpack

from tetravit.boxes.anchors import AnchorGrid, inside_image, inside_padding
from tetravit.boxes.coding import BoxCoder, clip
from tetravit.boxes.losses import focal, giou, objectness, smooth_l1
from tetravit.boxes.matching import BACKGROUND, IGNORED, Matcher
from tetravit.boxes.pasting import paste, paste_masks
from tetravit.boxes.pooling import crop_masks, pool_regions, region_levels
from tetravit.boxes.sampling import Sampler, sampling_keys
from tetravit.seeds import micro_batch

UNITS = units()
STRIDES = {"rpn": (4, 8, 16, 32, 64), "retina": (8, 16, 32, 64, 128)}
SCALES = {"rpn": (8.0,), "retina": tuple(4 * 2 ** (i / 3) for i in range(3))}
STDS = [(1.0,) * 4, (0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
CANVAS = (320, 416)


def canvas_maps(strides):
    return [torch.empty(1, 1, -(-CANVAS[0] // s), -(-CANVAS[1] // s)) for s in strides]


def anchors_of(kind):
    return AnchorGrid(STRIDES[kind], SCALES[kind])(canvas_maps(STRIDES[kind]))


def same(got, want, bound=0.0):
    torch.testing.assert_close(got, want.to(got.dtype), atol=bound, rtol=0)


@pytest.mark.parametrize("kind", ["rpn", "retina"])
def test_base_anchors(kind):
    for level, base in enumerate(AnchorGrid(STRIDES[kind], SCALES[kind]).base):
        same(base, UNITS[f"{kind}_base{level}"], 1e-6 * 2**level)


@pytest.mark.parametrize("level", range(5))
def test_anchor_grid_runs_row_column_anchor(level):
    anchors = anchors_of("rpn")[level]
    same(anchors[:40], UNITS[f"rpn_grid{level}_head"], 1e-4)
    same(anchors[-10:], UNITS[f"rpn_grid{level}_tail"], 1e-4)


def test_cells_outside_an_images_own_padding_are_flagged():
    flags = inside_padding(canvas_maps(STRIDES["rpn"]), STRIDES["rpn"], 320, 352)
    for level, flag in enumerate(flags):
        same(flag.repeat_interleave(3), UNITS[f"rpn_valid{level}"])


def test_anchors_across_the_border_are_told_apart():
    anchors = torch.tensor([[0.0, 0, 9, 9], [-1, 0, 9, 9], [0, 0, 10, 9], [0, 0, 9, 12]])
    assert inside_image(anchors, height=12, width=10, border=0).tolist() == [True, False, False, False]
    assert inside_image(anchors, height=12, width=10, border=1).tolist() == [True] * 4


@pytest.mark.parametrize("i", range(4))
def test_box_coding(i):
    coder, boxes = BoxCoder(STDS[i]), UNITS["boxes"]
    decoded = coder.decode(boxes, UNITS["deltas"])
    same(decoded, UNITS[f"decode{i}_noclip"], 1e-3)
    same(clip(decoded[None], torch.tensor([[300, 400]]))[0], UNITS[f"decode{i}"], 1e-4)
    same(coder.encode(boxes, UNITS["targets"]), UNITS[f"encode{i}"], 1e-4)


def test_sides_change_at_most_62_fold():
    boxes = torch.tensor([[0.0, 0, 125, 125]])
    (x1, y1, x2, y2), (u1, v1, u2, v2) = (
        BoxCoder().decode(boxes, torch.tensor([[0.0, 0, -9, 9], [0, 0, 9, -9]])).tolist()
    )
    assert [x2 - x1, y2 - y1, u2 - u1, v2 - v1] == pytest.approx([2, 7812.5, 7812.5, 2], rel=1e-4)


def test_clip_follows_the_size_of_each_image():
    boxes = torch.tensor([[[-5.0, -5, 50, 60]], [[-5, -5, 50, 60]]])
    clipped = clip(boxes, torch.tensor([[40, 30], [10, 20]]))
    assert clipped.tolist() == [[[0, 0, 30, 40]], [[0, 0, 20, 10]]]


@pytest.mark.parametrize(
    ("kind", "matcher"), [("rpn", Matcher(0.7, 0.3, 0.3)), ("retina", Matcher(0.5, 0.4, 0.0))]
)
def test_anchors_are_matched_and_ties_go_to_the_later_ground_truth(kind, matcher):
    matches = matcher(UNITS["assign_gt"], torch.cat(anchors_of(kind)))
    index, truth = UNITS[f"assign_{kind}_pos"]
    assert torch.equal((matches >= 0).nonzero().flatten(), index)
    assert torch.equal(matches[index], truth - 1)
    assert torch.equal((matches == IGNORED).nonzero().flatten(), UNITS[f"assign_{kind}_ign"].long())


PROPOSAL_MATCHERS = {
    "mask_rcnn": Matcher(0.5, 0.5, 0.5),
    "cascade1": Matcher(0.5, 0.5),
    "cascade2": Matcher(0.6, 0.6),
    "cascade3": Matcher(0.7, 0.7),
}


@pytest.mark.parametrize("kind", PROPOSAL_MATCHERS)
def test_proposals_are_matched(kind):
    matches = PROPOSAL_MATCHERS[kind](UNITS["assign_gt"], UNITS["assign_rcnn_boxes"])
    assert torch.equal(matches + 1, UNITS[f"assign_{kind}"])  # the reference counts from 1, 0 is background


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade1"])
def test_a_ground_truth_takes_its_best_proposal_only_in_mask_rcnn(kind):
    matches = PROPOSAL_MATCHERS[kind](UNITS["assign_gt"], UNITS["assign_rcnn_boxes2"])
    assert torch.equal(matches + 1, UNITS[f"assign2_{kind}"])


def test_matching_without_ground_truth_or_overlap_gives_background():
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]])
    assert Matcher(0.5, 0.4, 0.0)(torch.zeros(0, 4), boxes).tolist() == [BACKGROUND, BACKGROUND]
    assert Matcher(0.5, 0.4, 0.0)(torch.tensor([[20.0, 20, 30, 30]]), boxes).tolist() == [
        BACKGROUND,
        BACKGROUND,
    ]
    assert Matcher(0.5, 0.4, 0.0)(torch.tensor([[20.0, 20, 30, 30]]), boxes[:0]).tolist() == []


def test_sampler_fills_with_negatives():
    matches = torch.tensor([0, 1, 0, 2] + [BACKGROUND] * 20 + [IGNORED] * 5)
    positive, negative = Sampler(8, 0.25)(matches)
    assert len(positive) == 2
    assert len(negative) == 6
    assert (matches[positive] >= 0).all()
    assert (matches[negative] == BACKGROUND).all()
    everything = Sampler(10**6, 0.5)(matches)
    assert [len(part) for part in everything] == [4, 20]


def test_sampler_draws_evenly():
    matches = torch.full((50,), BACKGROUND)
    drawn = torch.cat([Sampler(5, 0.5)(matches)[1] for _ in range(400)])
    assert drawn.bincount(minlength=50).min() > 15  # 40 expected each


def test_sampler_draws_by_the_place_of_an_image_alone():
    assert sampling_keys(3, 1, "cpu") == [None] * 3
    matches = torch.tensor([IGNORED] * 9 + [BACKGROUND] * 50)
    with micro_batch(0, 5, rows=4):
        keys = sampling_keys(4, 1, "cpu")
        others = sampling_keys(4, 2, "cpu")
    with micro_batch(0, 5, rows=2, rank=1, world_size=2):
        ranks = sampling_keys(2, 1, "cpu")
    drawn = [Sampler(5, 0.5)(matches, key)[1].tolist() for key in (*keys, *others)]
    assert len(set(map(tuple, drawn))) == 8
    assert [Sampler(5, 0.5)(matches, key)[1].tolist() for key in ranks] == drawn[1:4:2]
    moved = torch.cat((matches, torch.full((7,), IGNORED)))  # more padding
    assert Sampler(5, 0.5)(moved, keys[0])[1].tolist() == drawn[0]
    many = torch.cat([Sampler(5, 0.5)(matches, torch.tensor(key))[1] for key in range(0, 400_000, 1000)]) - 9
    assert many.bincount(minlength=50).min() > 15  # 40 expected each


def test_region_levels_and_pooling():
    levels = [
        torch.from_numpy(weights.rng(f"feat{i}").standard_normal((2, 4, 80 >> i, 104 >> i))).float()
        for i in range(4)
    ]
    regions = UNITS["rois"]
    assert torch.equal(region_levels(regions[:, 1:], 4), UNITS["roi_levels"])
    for size in (7, 14):
        same(pool_regions(levels, (4, 8, 16, 32), regions, size), UNITS[f"roi_align{size}"], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_regions_keep_their_place_on_maps_of_16_bits(dtype):
    ramp = (torch.arange(320) % 16).float().expand(1, 1, 320, 320)  # exact in either format
    regions = torch.tensor([[0, 1201.3, 1100.7, 1217.9, 1118.2]])
    wanted = pool_regions([ramp], (4,), regions, 7)
    got = pool_regions([ramp.to(dtype)], (4,), regions, 7)
    assert got.dtype == dtype
    same(got.float(), wanted.to(dtype).float())


def test_mask_targets():
    masks = inscribed_ellipses(UNITS["assign_gt"], *CANVAS)
    targets = crop_masks(masks, UNITS["mask_target_gt"], UNITS["mask_target_boxes"], 28)
    assert torch.equal(targets, UNITS["mask_target"])


def test_pasting():
    probabilities, boxes = UNITS["paste_prob"], UNITS["paste_boxes"]
    whole = torch.stack([paste(p, b, (0, 0, 400, 300)) for p, b in zip(probabilities, boxes, strict=True)])
    same(whole[:, ::4, ::4], UNITS["paste_float_sub"], 1e-5)
    assert torch.equal(
        paste_masks(probabilities, boxes, (300, 400)), unpack(UNITS["paste_packed"], (6, 300, 400))
    )


def test_pasting_is_single_precision_under_autocast():
    probabilities, boxes = UNITS["paste_prob"], UNITS["paste_boxes"]
    with torch.autocast("cpu", torch.bfloat16):
        masks = paste_masks(probabilities, boxes, (300, 400))
    assert torch.equal(masks, unpack(UNITS["paste_packed"], (6, 300, 400)))


def test_pasting_outside_the_image_or_into_nothing_gives_no_mask():
    boxes = torch.tensor([[50.0, 50, 60, 60], [-9, -9, -3, -3], [5, 5, 5, 5], [4, 4, 8, 8]])
    masks = paste_masks(torch.ones(4, 28, 28), boxes, (20, 30))
    assert masks.flatten(1).sum(1).tolist() == [0, 0, 0, 16]


def test_losses():
    logits, labels = UNITS["focal_x"], UNITS["focal_t"]
    torch.testing.assert_close(focal(logits, labels) / 7, UNITS["focal"])
    torch.testing.assert_close(10 * giou(UNITS["boxes"], UNITS["targets"]) / 40, UNITS["giou"])
    torch.testing.assert_close(objectness(logits[:, 0], labels <= 40) / len(labels), UNITS["bce"])
    torch.testing.assert_close(smooth_l1(UNITS["boxes"], UNITS["targets"], 1 / 9) / 40, UNITS["smoothl1"])
