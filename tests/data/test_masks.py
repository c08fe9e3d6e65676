"""Polygons and run lengths equal COCO's own code, bit for bit."""

import numpy as np
import pytest
import torch

from tetravit.boxes.pasting import paste_masks
from tetravit.data.masks import counts_mask, encode_pasted_masks, inside_columns, polygon_mask
from tetravit.rle import decode_rle, encode_masks, encode_rle, mask_counts

coco = pytest.importorskip("pycocotools.mask")


def decoded(size, text):
    return coco.decode({"size": list(size), "counts": text}).astype(bool)


@pytest.mark.parametrize("decimals", [0, 2, 9])
def test_polygons_are_filled_as_by_pycocotools(decimals):
    rng = np.random.default_rng(decimals)
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        corners = rng.random((int(rng.integers(3, 9)), 2)) * 1.6 - 0.3  # some outside the image
        polygon = np.round(corners * (width, height), decimals).reshape(-1)
        expected = coco.decode(coco.frPyObjects([polygon.tolist()], height, width))[..., 0]
        assert np.array_equal(polygon_mask([polygon], height, width), expected.astype(bool))


def test_several_polygons_are_one_mask():
    parts = [np.array([0.0, 0, 4, 0, 4, 4, 0, 4]), np.array([6.0, 6, 9, 6, 9, 9, 6, 9])]
    mask = polygon_mask(parts, 10, 10)
    assert mask.sum() == 16 + 9
    assert not polygon_mask([], 10, 10).any()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_runs_are_written_as_by_pycocotools(share):
    rng = np.random.default_rng(1)
    for _ in range(30):
        mask = rng.random(rng.integers(1, 50, 2)) < share
        text = encode_rle(mask_counts(torch.from_numpy(mask)))
        assert text == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert np.array_equal(counts_mask(decode_rle(text), *mask.shape), mask)
        first, inside = inside_columns(decode_rle(text), mask.shape[0])
        columns = np.flatnonzero(mask.any(axis=0))
        assert inside.shape[1] == (columns[-1] + 1 - columns[0] if len(columns) else 0)
        back = np.zeros_like(mask)
        back[:, first : first + inside.shape[1]] = inside
        assert np.array_equal(back, mask)


def test_long_runs_are_read_back():
    counts = np.array([0, 3_000_000, 1, 40_000_000, 2**31, 5, 70])
    assert np.array_equal(decode_rle(encode_rle(counts)), counts)


@pytest.mark.parametrize("text", [b"", b"\x10", b"0o", b"ooooooooo0"])
def test_letters_that_hold_no_runs_are_refused(text):
    with pytest.raises(ValueError, match="the run lengths are invalid"):
        decode_rle(text)


def test_pasted_masks_are_encoded_one_by_one():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(20, 2, generator=generator) * 60 - 15
    boxes = torch.cat((low, low + 2 + torch.rand(20, 2, generator=generator) * 70), dim=1)
    boxes[0] = torch.tensor([-5.0, -5.0, 90.0, 60.0])  # all of the image: columns without an end
    probabilities = torch.rand(20, 28, 28, generator=generator)
    probabilities[0] = 1.0
    size = (48, 64)
    pasted = paste_masks(probabilities, boxes, size)
    assert encode_pasted_masks(probabilities, boxes, size) == encode_masks(pasted)
    assert all(
        np.array_equal(decoded(size, m), p) for m, p in zip(encode_masks(pasted), pasted.numpy(), strict=True)
    )
