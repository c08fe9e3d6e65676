"""Equal to the authors' numbers (tests/golden/detr)."""

import torch
from detr.inputs import SIZES, Golden, rand, randn, unpack

from tetravit.heads.parts.levels import Levels, sine_embedding

GOLDEN = Golden("detr_units")
SHAPES = [(32, 40), (16, 20), (8, 10), (4, 5)]


def levels():
    return Levels.of([torch.empty(2, 1, *shape) for shape in SHAPES], (256, 320), SIZES)


def split(tokens):
    return tokens.split([h * w for h, w in SHAPES], dim=1)


def within(shapes, valid):
    """Levels of two images: one that fills the maps, one that fills `valid` of them."""
    inside = [
        [torch.stack((torch.ones(side[axis]) > 0, torch.arange(side[axis]) < part[axis]))]
        for axis in (0, 1)
        for side, part in zip(shapes, valid, strict=True)
    ]
    flat = [x[0] for x in inside]
    return Levels([tuple(shape) for shape in shapes], flat[: len(shapes)], flat[len(shapes) :])


def test_padding_and_ratios_are_the_authors():
    for i, part in enumerate(split(levels().padding())):
        assert torch.equal(part.view(2, *SHAPES[i]), unpack(GOLDEN[f"mask{i}"], (2, *SHAPES[i])))
    GOLDEN.check("valid_ratios", levels().ratios())


def test_positions_are_the_authors():
    parts = [
        x.transpose(1, 2).view(2, 256, *s)
        for x, s in zip(split(levels().positions(256)), SHAPES, strict=True)
    ]
    GOLDEN.check("pos_l2_ch4", parts[2][:, ::4])
    GOLDEN.check("pos_l0_slice", parts[0][:, ::16, ::5, ::6])


def test_reference_points_are_the_authors():
    references = levels().references()
    GOLDEN.check("enc_ref_points", references[:, 1600:][:, :, 2:])


def test_proposals_are_the_authors():
    meta = GOLDEN.meta["prop"]
    logits, used = within(meta["shapes"], meta["valid_of_image1"]).proposals()
    GOLDEN.check("prop_logit", logits)
    assert torch.equal(used, logits.isfinite().all(dim=2))
    memory = randn("prop:memory", (2, 180, 8)).masked_fill(~used[..., None], 0)
    GOLDEN.check("prop_memory", memory)


def test_embeddings_of_boxes_are_the_authors():
    boxes = rand("sine:pos", (5, 2, 4))
    GOLDEN.check("sine_embed4", sine_embedding(boxes, 128))
    GOLDEN.check("sine_embed2", sine_embedding(boxes[..., :2], 128))
