"""COCO's JSON: equal to the drawings it was made from, and what a careless or hostile file does."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.coco import class_names
from tetravit.data.collate import collate
from tetravit.data.datasets import DATASETS
from tetravit.data.decode import BadImage
from tetravit.data.layouts import write_shapes
from tetravit.data.objects import WITHOUT_MASK

HEIGHT, WIDTH = 40, 60
SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]


def annotation(number=1, **changes):
    row = {"id": number, "image_id": 7, "category_id": 3, "bbox": [10, 10, 10, 10], "area": 100.0}
    return row | {"iscrowd": 0, "segmentation": [SQUARE]} | changes


CATEGORIES = "the categories are 'early', 'late': " + (
    'the list "categories" of instances_val2017.json is to name every category_id'
)


def table(*annotations, **changes):
    images = [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]
    categories = [{"id": 9, "name": "late"}, {"id": 3, "name": "early"}]
    return {"images": images, "annotations": list(annotations), "categories": categories} | changes


@pytest.fixture
def coco(tmp_path):
    """Writes a file of annotations and opens it."""

    def opened(content, split="val", **options):
        for part in ("train", "val"):
            folder = tmp_path / f"{part}2017"
            folder.mkdir(exist_ok=True)
            for name in ("a", *"1234"):
                Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        file = tmp_path / "annotations" / f"instances_{split}2017.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return DATASETS["coco"](tmp_path, split, **options)

    return opened


def test_the_layout_holds_what_the_drawings_do(tmp_path):
    list(write_shapes(tmp_path, train=2, val=6, size=64))
    written = DATASETS["coco"](tmp_path / "coco", "val")
    drawn = DATASETS["shapes_det"](None, "val", size=64, count=6)
    assert written.class_names == drawn.class_names  # ids have gaps, labels have none
    for i in range(6):
        got, expected = written[i].target, drawn[i].target
        for part in ("boxes", "labels", "masks", "area", "crowd", "size"):
            a, b = getattr(got, part), getattr(expected, part)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_crowds_are_evaluated_but_not_trained_on(coco):
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    rows = [annotation(1), annotation(2, iscrowd=1, segmentation=runs)]
    target = coco(table(*rows))[0].target
    assert target.crowd.tolist() == [False, True]
    assert target.masks.sum(dim=(1, 2)).tolist() == [100, 5]
    assert target.masks[1, :5, 0].all()
    assert target.image_id == 7
    with pytest.raises(ValueError) as error:
        coco(table(rows[1]), "train")
    assert str(error.value).endswith(
        "train2017' has an object to train on: 1 crowds or difficult objects, evaluated but not trained on; the"
        " first: a.png; 1 images without an object to train on, left out; the first: a.png."
    )


def test_images_without_objects_are_validated_but_not_trained_on(coco):
    images = [{"id": i, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} for i in (7, 5)]
    content = table(annotation(), images=images)
    assert len(coco(content)) == 2
    assert len(coco(content, "train")) == 1
    everything = coco(content, "train", empty="keep")
    assert len(everything) == 2
    empty = everything[1]
    assert empty.target.boxes.shape == (0, 4)
    assert empty.target.masks.shape == (0, HEIGHT, WIDTH)
    assert collate([empty], [1]).targets[0].labels.dtype == torch.int64


def test_images_that_do_not_train_are_counted(coco):
    sides = {1: (31, 60), 2: (40, 60), 3: (40, 60), 4: (40, 60)}
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in sides.items()]
    rows = [
        annotation(1, image_id=1),
        annotation(2, image_id=2),
        annotation(3, image_id=4, bbox=[0, 0, 9, 0.5]),
    ]
    dataset = coco(table(*rows, images=images), "train")
    assert len(dataset) == 1
    assert dataset.problems.lines() == [
        "1 images of another size than their annotations are for, of those read first; the first: 1.png",
        "1 objects of less than a pixel inside their image, not trained on; the first: 4.png",
        "1 images with a side under 32 pixels, left out; the first: 1.png",
        "2 images without an object to train on, left out; the first: 3.png",
    ]
    (line,) = coco(table(*rows, images=images)).problems.lines()  # evaluated, they count
    assert line.startswith("1 images of another size than their annotations are for, ")
    kept = coco(table(*rows, images=images), "train", empty="keep")
    assert list(kept.problems.counts.values()) == [1, 1, 1]


def test_training_boxes_are_cut_to_the_image_and_tiny_ones_go(coco):
    rows = [
        annotation(1, bbox=[50, 30, 30, 30]),
        annotation(2, bbox=[5, 5, 0.5, 9]),
        annotation(3, area=0),
    ]
    target = coco(table(*rows), "train")[0].target
    assert target.boxes.tolist() == [[50.0, 30.0, WIDTH, HEIGHT], [10, 10, 20, 20]]
    assert target.area.tolist()[1] == 100  # an area of 0 is none: it is that of the box
    assert coco(table(*rows))[0].target.boxes.shape == (3, 4)  # evaluated as they are


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bbox": [1, 1, 0, 5]}, "boxes with zero or negative sides, left out"),
        ({"bbox": [1, 1, 5, -5]}, "boxes with zero or negative sides, left out"),
        ({"bbox": [1, 1, math.nan, 5]}, "boxes with sides that are NaN or infinite, left out"),
        ({"bbox": [1, 1, math.inf, 5]}, "boxes with sides that are NaN or infinite, left out"),
        ({"bbox": [WIDTH, 1, 5, 5]}, "boxes outside their image, left out"),
        ({"bbox": [-9, -9, 5, 5]}, "boxes outside their image, left out"),
        (
            {"bbox": [0.1, 0.2, 0.3, 0.4]},
            "boxes whose four numbers lie in 0..1, left out; COCO's boxes are x, y, width, height in pixels: multiply"
            " shares by the image's width and height",
        ),
        ({"bbox": [1, 1, 5]}, "annotations without a box x, y, width, height, left out"),
        ({"bbox": [1, 1, 10**400, 5]}, "annotations without a box x, y, width, height, left out"),
        ({"iscrowd": 2}, "annotations whose iscrowd is neither 0 nor 1, left out"),
        ({"iscrowd": []}, "annotations whose iscrowd is neither 0 nor 1, left out"),
        (
            {"category_id": {}},
            f"objects of unknown classes ({{}}), left out; {CATEGORIES}",
        ),
        (
            {"category_id": 3.5},
            f"objects of unknown classes (3.5), left out; {CATEGORIES}",
        ),
        ({"image_id": [7]}, "annotations of images that are not listed, left out"),
        ({"image_id": None}, "annotations of images that are not listed, left out"),
        (
            {"category_id": 4},
            f"objects of unknown classes (4), left out; {CATEGORIES}",
        ),
        ({"image_id": 8}, "annotations of images that are not listed, left out"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_counted(coco, caplog, changes, problem):
    dataset = coco(table(annotation(5), annotation(6, **changes)))
    assert len(dataset[0].target.boxes) == 1
    assert dataset.problems.counts == {problem: 1}
    assert dataset.problems.lines() == [f"1 {problem}; the first: instances_val2017.json, annotation 6"]
    assert caplog.messages == [f"{dataset.folder}: {dataset.problems.lines()[0]}."]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "run lengths of another size, no mask"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [81]}},
            "run lengths of another size, no mask",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "!"}},
            "run lengths that are invalid, no mask",
        ),
        (
            {"segmentation": [[1, 1, 5, 5]]},
            "polygons of fewer than three points, or without numbers, left out",
        ),
        ({"segmentation": [["x"]]}, "polygons of fewer than three points, or without numbers, left out"),
        (
            {"segmentation": [[1, 1, 5, 5, math.nan, 3]]},
            "polygons of fewer than three points, or without numbers, left out",
        ),
        (
            {"segmentation": {"size": None, "counts": [HEIGHT * WIDTH]}},
            "run lengths of another size, no mask",
        ),
        ({"segmentation": {"size": 5, "counts": [81]}}, "run lengths of another size, no mask"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}},
            "run lengths that are invalid, no mask",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": 4 * [2**62] + [HEIGHT * WIDTH]}},
            "run lengths of another size, no mask",
        ),
        (
            {"segmentation": [[1, 1, 5, 5, 10**400, 3]]},
            "polygons of fewer than three points, or without numbers, left out",
        ),
        (
            {"segmentation": [[1, 1, 1e9, 1, 5, 5]]},
            "polygons that reach far outside their image, left out",
        ),
        (
            {"segmentation": [[1, 1, 9, -4 * WIDTH - 1, 5, 5]]},
            "polygons that reach far outside their image, left out",
        ),
        ({"segmentation": "abc"}, "segmentations that are neither polygons nor run lengths, no mask"),
        ({"segmentation": 5}, "segmentations that are neither polygons nor run lengths, no mask"),
    ],
)
def test_a_faulty_mask_costs_no_box(coco, changes, problem):
    content = table(annotation(5), annotation(6, **changes))
    dataset = coco(content)
    assert dataset[0].target.masks.sum() == 100
    assert list(dataset.problems.counts) == [problem, WITHOUT_MASK]
    assert dataset.problems.lines()[0] == f"1 {problem}; the first: instances_val2017.json, annotation 6"
    boxes = coco(content, masks="skip")
    assert len(boxes[0].target.boxes) == 2
    assert boxes.problems.lines() == []
    alone = coco(table(annotation(6, **changes)), "train")  # no object has a mask: all keep their boxes
    assert len(alone[0].target.boxes) == 1
    assert alone[0].target.masks is None


@pytest.mark.parametrize("bare", [[], None])
def test_one_object_without_a_mask_takes_no_masks_from_the_others(coco, bare):
    content = table(annotation(1), annotation(2, segmentation=bare), annotation(3))
    for split in ("train", "val"):
        dataset = coco(content, split)
        target = dataset[0].target
        assert len(target.boxes) == len(target.labels) == len(target.area) == 2
        assert target.masks.sum(dim=(1, 2)).tolist() == [100, 100]
        assert dataset.problems.lines() == [
            "1 objects without a mask, left out; data.options.masks=skip keeps them; the first: a.png"
        ]
    assert coco(content, masks="skip")[0].target.boxes.shape == (3, 4)


@pytest.mark.parametrize("area", [math.nan, math.inf, "x", -5, -1, [], 10**400])
def test_an_area_that_is_none_is_taken_from_the_box(coco, area):
    dataset = coco(table(annotation(1, area=area), annotation(2, area=70)))
    assert dataset[0].target.area.tolist() == [100.0, 70.0]
    assert dataset.problems.lines() == [
        "1 areas that are no finite number from 0 up, taken from the box; the first: instances_val2017.json,"
        " annotation 1"
    ]


def test_annotations_need_neither_area_nor_iscrowd(coco):
    bare = {name: value for name, value in annotation().items() if name not in ("area", "iscrowd")}
    dataset = coco(table(bare))
    assert dataset[0].target.area.tolist() == [100.0]
    assert dataset[0].target.crowd.tolist() == [False]
    assert dataset.problems.lines() == []


def test_a_set_without_any_mask_keeps_its_boxes(coco):
    images = [{"id": i, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} for i in (7, 8)]
    dataset = coco(table(annotation(segmentation=[]), images=images))
    assert dataset.problems.lines() == []
    assert [dataset[i].target.masks for i in (0, 1)] == [None, None]
    assert dataset[0].target.boxes.shape == (1, 4)


def test_an_image_whose_objects_all_lack_masks_does_not_train(coco):
    images = [{"id": i, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} for i in (7, 8)]
    content = table(annotation(1), annotation(2, image_id=8, segmentation=[]), images=images)
    assert len(coco(content, "train")) == 1
    assert len(coco(content, "train", masks="skip")) == 2


@pytest.mark.parametrize("bad", [[1, 1, 5, 5], ["x"], 5, [1, 1, 1e9, 1, 5, 5]])
def test_a_good_polygon_beside_a_bad_one_stays(coco, bad):
    dataset = coco(table(annotation(segmentation=[SQUARE, bad])))
    assert dataset[0].target.masks.sum() == 100
    assert list(dataset.problems.counts.values()) == [1]


def test_polygons_may_reach_over_the_border(coco):
    around = [-WIDTH, -HEIGHT, 2 * WIDTH, -HEIGHT, 2 * WIDTH, 2 * HEIGHT, -WIDTH, 2 * HEIGHT]
    dataset = coco(table(annotation(segmentation=[around])))
    assert dataset[0].target.masks.all()
    assert dataset.problems.lines() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "instances_val2017.json is not JSON: "),
        ([], "instances_val2017.json is not COCO's JSON: it holds no list of 'images'."),
        (
            table(categories={}),
            "instances_val2017.json is not COCO's JSON: it holds no list of 'categories'.",
        ),
        (
            table(images=[{"id": 7, "file_name": f"{k}.png"} for k in "12"]),
            "instances_val2017.json: the image id 7 is given twice, to '1.png' and '2.png'.",
        ),
        (
            table(categories=[{"id": 3, "name": "a"}, {"id": "3", "name": "b"}]),
            "instances_val2017.json: the category id 3 is given twice, to 'a' and 'b'.",
        ),
        (
            table(images=[{"id": [7], "file_name": "a.png", "height": 9, "width": 9}]),
            "instances_val2017.json: every image has an id, a whole number of 64 bits or a text; got [7].",
        ),
        (
            table(annotation(), images=[{"id": 7, "file_name": "b.png"}]),
            "1 of the 1 images that instances_val2017.json lists are not in ",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(coco, content, message):
    with pytest.raises(ValueError) as error:
        coco(content)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", " ", None, 5, "a\0", "\ud800"])
def test_what_is_no_name_of_a_file(coco, name):
    with pytest.raises(ValueError) as error:
        coco(table(annotation(), images=[{"id": 7, "file_name": name, "height": HEIGHT, "width": WIDTH}]))
    assert str(error.value) == (
        "instances_val2017.json, image 7: file_name is the name of an image below the image folder;"
        f" got {name!r}."
    )


@pytest.mark.parametrize(
    "name", ["../b.png", "x/../../../secret.png", "/etc/passwd", "http://host/b.png", "file:b.png"]
)
def test_nothing_outside_the_folder_is_read(coco, tmp_path, name):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    images = [{"id": 7, "file_name": name, "height": HEIGHT, "width": WIDTH}]
    with pytest.raises(ValueError) as error:
        coco(table(annotation(), images=images), images="{split}2017")
    assert str(error.value) == (
        f"1 of the 1 images that instances_val2017.json lists are not in {str(tmp_path / 'val2017')!r}; the first:"
        f" {name!r}. data.options.images names their folder; data.options.missing=skip leaves them out."
    )


def test_missing_files_are_said(coco, tmp_path):
    with pytest.raises(ValueError, match="There is no folder "):
        DATASETS["coco"](tmp_path / "nowhere", "val")
    dataset = coco(table(annotation()))
    (tmp_path / "val2017" / "a.png").unlink()
    with pytest.raises(BadImage) as error:
        dataset[0]
    assert str(error.value) == f"Cannot read image '{tmp_path}/val2017/a.png': no such file or directory."
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(ValueError) as missing:
        DATASETS["coco"](tmp_path, "val")
    file = tmp_path / "annotations" / "instances_val2017.json"
    assert str(missing.value) == (
        f"There is no file '{file}'; data.val=FILE or data.options.annotations names another. data.split=0.1 divides"
        " a set without parts."
    )
    with pytest.raises(ValueError, match="The data set 'coco' needs its root"):
        DATASETS["coco"](None, "val")


def test_an_image_of_another_size_is_no_image_of_these_annotations(coco, tmp_path):
    dataset = coco(table(annotation()))
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "val2017" / "a.png")
    with pytest.raises(BadImage) as error:
        dataset[0]
    assert str(error.value) == (
        f"Cannot read image '{tmp_path}/val2017/a.png': it has 40 x 60 pixels; its annotations are for 60 x 40."
    )


def test_other_places_can_be_named(coco, tmp_path):
    coco(table(annotation()))
    (tmp_path / "annotations" / "instances_val2017.json").rename(tmp_path / "val.json")
    dataset = DATASETS["coco"](
        tmp_path, "val", annotations="{split}.json", images="{split}2017", masks="skip"
    )
    assert dataset[0].target.masks is None
    with pytest.raises(ValueError) as error:
        DATASETS["coco"](tmp_path, "val", annotations="{split}.json", masks="no")
    assert str(error.value) == "masks takes one of read, skip; got 'no'."


def test_annotations_take_the_room_of_their_numbers(coco):
    corners = [round(float(v), 2) for v in np.linspace(1, 30, 40)]
    rows = [annotation(i + 1, segmentation=[corners]) for i in range(500)]
    text = json.dumps(table(*rows))
    tracemalloc.start()
    dataset = coco(text)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(dataset.table.boxes) == 500
    assert held / 500 < 40 * 4 + 150  # bytes: coordinates of four bytes each, box, label, ends


def test_the_classes_of_coco():
    names = class_names()
    assert len(set(names)) == 80
    assert (names[0], names[79]) == ("person", "toothbrush")
