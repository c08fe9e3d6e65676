"""Drawings: the same for ever, true to themselves, and the same in every layout."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.cli import main
from tetravit.data.datasets import DATASETS
from tetravit.data.layouts import outlines, segmentation, write_shapes
from tetravit.data.shapes import CLASSES, IGNORE, MOST_HIDDEN, SEGMENTS, draw


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:12]


def test_a_drawing_depends_on_its_numbers_alone():
    first, again = draw(3, size=64), draw(3, size=64)
    assert digest(first.image, first.labels) == digest(again.image, again.labels)
    others = [draw(4, size=64), draw(3, size=64, split="val"), draw(3, size=64, seed=1)]
    assert len({digest(d.image) for d in (first, *others)}) == 4


def test_labels_are_the_shapes_seen_from_above():
    hidden = []
    for i in range(40):
        drawn = draw(i, size=64)
        assert drawn.image.shape == (64, 64, 3)
        assert drawn.image.dtype == np.uint8
        seen = np.zeros((64, 64), int)
        for shape in drawn.shapes:
            x1, y1, x2, y2 = shape.box
            assert shape.mask.any()
            assert shape.mask[y1:y2, x1:x2].sum() == shape.mask.sum()
            assert shape.mask[y1].any()
            assert shape.mask[:, x2 - 1].any()
            assert not (seen[shape.mask]).any()  # no pixel is of two objects
            seen[shape.mask] = shape.label + 1
            hidden.append(shape.hidden)
        sure = drawn.labels != IGNORE
        np.testing.assert_array_equal(seen[sure], drawn.labels[sure])
        assert 0 < (~sure).mean() < 0.25
    assert 0.2 < max(hidden) <= MOST_HIDDEN  # some cover others, none wholly


def test_every_class_is_drawn():
    labels = [shape.label for i in range(200) for shape in draw(i, size=32).shapes]
    assert np.bincount(labels, minlength=len(CLASSES)).min() > 30


@pytest.mark.parametrize(("size", "most"), [(31, 5), (64, 0)])
def test_a_drawing_that_cannot_be(size, most):
    text = f"A drawing has sides from 32 pixels and 1 shape or more; got size={size}, most={most}."
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        draw(0, size=size, most=most)


def test_both_sets_tell_of_the_same_drawing():
    maps, objects = (DATASETS[name](None, "val", size=64, count=3) for name in ("shapes_seg", "shapes_det"))
    assert (maps.num_classes, objects.num_classes) == (len(SEGMENTS), len(CLASSES)) == (9, 8)
    a, b = maps[1], objects[1]
    assert torch.equal(a.image, b.image)
    assert a.target.dtype == torch.uint8
    assert (a.name, b.name) == ("shapes_seg/val/1", "shapes_det/val/1")
    for label, mask in zip(b.target.labels, b.target.masks, strict=True):
        assert set(a.target[mask].tolist()) <= {int(label) + 1, IGNORE}
    assert torch.equal(b.target.area, b.target.masks.sum((1, 2)).float())
    with pytest.raises(IndexError):
        maps[3]


def test_a_set_that_cannot_be():
    text = "shapes_det takes size from 32 pixels, count and most from 1; got size=16, count=200, most=5."
    with pytest.raises(ValueError) as raised:
        DATASETS["shapes_det"](None, "val", size=16)
    assert str(raised.value) == text


@pytest.mark.parametrize("holes", [0, 1])
def test_outlines_run_along_the_pixels(holes):
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    mask[0, 5] = True  # touches the block at one corner
    mask[2, 2:4] = not holes
    loops = outlines(mask)
    assert len(loops) == 2 + holes
    if not holes:
        assert sorted(segmentation(mask)) == [[1, 1, 5, 1, 5, 4, 1, 4], [5, 0, 6, 0, 6, 1, 5, 1]]
    else:
        assert segmentation(mask) == {"size": [5, 6], "counts": [6, 3, 2, 1, 1, 1, 2, 1, 1, 1, 2, 3, 1, 1, 4]}


@pytest.mark.parametrize("other", [(0, 0), (0, 4), (4, 0), (4, 4)])
def test_what_touches_at_a_corner_stays_apart(other):
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = mask[other] = True
    y, x = other
    square = [x, y, x + 1, y, x + 1, y + 1, x, y + 1]
    assert {tuple(sorted(zip(loop[::2], loop[1::2], strict=True))) for loop in segmentation(mask)} == {
        tuple(sorted(zip(square[::2], square[1::2], strict=True))),
        ((1, 1), (1, 4), (4, 1), (4, 4)),
    }


def test_a_loop_that_comes_by_below_leaves_its_neighbour_alone():
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = True
    mask[2, 0] = mask[3] = mask[:, 3] = True  # from the right around to the pixel's lower left corner
    loops = outlines(mask)
    assert sorted(map(len, loops)) == [4, 8]
    assert [_area_of(loop) for loop in sorted(loops, key=len)] == [1, 8]


def _area_of(loop):
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(loop, [*loop[1:], loop[0]], strict=True)) / 2


def test_run_lengths_may_begin_with_the_mask():
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    assert segmentation(mask) == {"size": [3, 3], "counts": [0, 4, 1, 4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    assert list(write_shapes(root, train=4, val=2, size=64)) == [
        *(f"train/{i}" for i in range(4)),
        "val/0",
        "val/1",
    ]
    return root


def test_all_layouts_hold_the_same_images(folder):
    kinds = [
        sorted((folder / "folders" / "train").rglob("*.jpg"), key=lambda p: p.name),
        sorted((folder / "coco" / "train2017").iterdir()),
        sorted((folder / "ade20k" / "images" / "training").iterdir()),
    ]
    assert [len(files) for files in kinds] == [4, 4, 4]
    for same in zip(*kinds, strict=True):
        assert len({file.read_bytes() for file in same}) == 1
    difference = np.asarray(Image.open(kinds[1][2])).astype(int) - draw(2, size=64).image
    assert np.abs(difference).mean() < 3  # JPEG


def test_ade20k_counts_classes_from_1(folder):
    file = folder / "ade20k" / "annotations" / "validation" / "ADE_val_00000002.png"
    stored, labels = np.asarray(Image.open(file)), draw(1, split="val", size=64).labels
    np.testing.assert_array_equal(stored, np.where(labels == IGNORE, 0, labels + 1))
    lines = (folder / "ade20k" / "objectInfo150.txt").read_text().splitlines()
    assert lines[0] == "Idx\tRatio\tTrain\tVal\tName"
    assert [line.split("\t")[-1] for line in lines[1:]] == list(SEGMENTS)


def test_coco_gives_back_boxes_and_masks(folder, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(folder / "coco" / "annotations" / "instances_train2017.json"))
    assert list(coco.cats) != list(range(1, 9))  # ids have gaps, as in COCO
    shapes = [shape for i in range(4) for shape in draw(i, size=64).shapes]
    annotations = [a for i in sorted(coco.imgs) for a in coco.imgToAnns[i]]
    assert len({a["id"] for a in annotations}) == len(shapes)
    for found, shape in zip(annotations, shapes, strict=True):
        np.testing.assert_array_equal(coco.annToMask(found).astype(bool), shape.mask)
        x, y, w, h = found["bbox"]
        assert (x, y, x + w, y + h) == shape.box
        assert coco.cats[found["category_id"]]["name"] == CLASSES[shape.label]


def test_a_folder_of_classes_names_the_largest_shape(folder):
    for i, file in enumerate(sorted((folder / "folders" / "train").rglob("*.jpg"), key=lambda p: p.name)):
        areas = {shape.mask.sum(): shape.label for shape in draw(i, size=64).shapes}
        assert file.parent.name == CLASSES[areas[max(areas)]]


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


def test_the_verb_writes_once_and_then_refuses(tmp_path, capsys):
    command = ("data", "make", "shapes", "--to", tmp_path / "s", "--train", 2, "--val", 1, "--size", 32)
    assert run(*command) == 0
    assert f"Drew 2 + 1 images of 32 x 32 pixels into {tmp_path / 's'}: folders, coco, ade20k." in (
        capsys.readouterr().err
    )
    table = json.loads((tmp_path / "s" / "coco" / "annotations" / "instances_val2017.json").read_text())
    assert table["images"] == [{"id": 139, "file_name": "000000000139.jpg", "height": 32, "width": 32}]
    assert run(*command) == 2
    taken = str(tmp_path / "s" / "folders")
    assert capsys.readouterr().err == (
        f"tetravit data make: {taken!r} is there already; take another folder, or remove it.\n"
    )


def test_the_verb_says_what_it_can_make(tmp_path, capsys):
    assert run("data", "make", "shape", "--to", tmp_path / "s") == 2
    assert (
        capsys.readouterr().err
        == "tetravit data make: Unknown drawn data set 'shape'. Did you mean 'shapes'?\n"
    )
    assert run("data", "make", "shapes", "--to", tmp_path / "s", "--size", 8) == 2
    assert capsys.readouterr().err == (
        "tetravit data make: A drawing has sides from 32 pixels and 1 shape or more; got size=8, most=5.\n"
    )
    assert not (tmp_path / "s").exists()
