"""predict with detectors: tables, COCO's results, pictures, thresholds, tiles, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.coco import category_ids, class_names
from tetravit.data.decode import decode
from tetravit.data.layouts import write_shapes
from tetravit.data.masks import counts_mask
from tetravit.data.preprocess import preprocess
from tetravit.data.shapes import CLASSES, draw
from tetravit.draw.objects import outlined
from tetravit.models import create_detector, load, save
from tetravit.predictors import stream
from tetravit.predictors.parts.sources import find_images
from tetravit.rle import decode_rle
from tetravit.structures import Preprocess

pytestmark = pytest.mark.slow  # whole runs and other processes

SMALL = {"width": 16, "num_candidates": 30, "num_proposals": 30, "score_threshold": 0.0, "max_detections": 6}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector of shapes that has learnt nothing: it finds six objects anywhere."""
    torch.manual_seed(0)
    model = create_detector(
        "xcit_nano_12_p16", num_classes=8, head_options=SMALL, depth=4, out_blocks=(0, 1, 2, 3)
    )
    model.class_names = CLASSES
    model.input = Preprocess(size=64, longest=96, mode="fit", interpolation="bilinear")
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save(model, path)
    return path


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    for i, box in enumerate([(0, 0, 96, 96), (0, 10, 96, 70), (20, 0, 70, 96)]):
        Image.fromarray(draw(i, size=96).image).crop(box).save(folder / f"{i + 7:012}.png")
    return folder


def test_a_table_and_results_in_cocos_format(ask, detector, drawings, tmp_path):
    file = tmp_path / "results.json"
    answer = ask("predict", detector, drawings, "--threshold", 0.05, "--results", file)
    assert answer.code == 0
    rows = json.loads(file.read_text())
    assert answer.err == (
        f"Wrote {len(rows)} objects into {file}. Ids of images are their file names, ids of categories counted"
        " from 1; --annotations FILE takes both from COCO's JSON.\n"
    )
    assert "%" in answer.out
    assert {row["image_id"] for row in rows} == {7, 8, 9}
    for row in rows:
        assert row.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert 1 <= row["category_id"] <= 8
        height, width = row["segmentation"]["size"]
        mask = counts_mask(decode_rle(row["segmentation"]["counts"].encode()), height, width)
        x, y, w, h = row["bbox"]
        assert 0 <= x <= x + w <= width + 0.01
        rows_with, columns_with = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows_with):
            assert columns_with[0] >= x - 1.5
            assert rows_with[-1] <= y + h + 1.5


def test_batches_of_several_sizes_are_answered_in_order(detector, drawings):
    """As each image alone on the canvas of the batch, of which the attention of these models sees all."""
    model, files = load(detector).eval(), find_images([drawings])
    answers = list(stream(model, files, batch_size=3, threshold=0.0))
    assert [p.image for p in answers] == files
    for prediction in answers:
        pixels = decode(prediction.image)
        size = tuple(pixels.shape[1:])
        assert prediction.size == size
        image = model.preprocess(pixels)
        height, width = image.shape[1:]
        canvas = torch.zeros(1, 3, 96, 96)
        canvas[0, :, :height, :width] = image
        with torch.no_grad():
            (alone,) = model.detect(canvas, [(height, width)], output_sizes=[size])
        scores, boxes = ([getattr(o, name) for o in prediction.objects] for name in ("score", "box"))
        np.testing.assert_allclose(scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(boxes, alone.boxes, atol=1e-2)
        assert (alone.boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_batches_of_one_size_are_answered_as_each_image_alone(detector, tmp_path):
    for i in range(3):
        Image.fromarray(draw(i, size=96).image).save(tmp_path / f"{i}.png")
    model, files = load(detector), find_images([tmp_path])
    one, all_ = (list(stream(model, files, batch_size=n, threshold=0.0)) for n in (1, 3))
    for a, b in zip(one, all_, strict=True):
        assert [o.index for o in a.objects] == [o.index for o in b.objects]
        np.testing.assert_allclose([o.score for o in a.objects], [o.score for o in b.objects], atol=1e-5)
        np.testing.assert_allclose([o.box for o in a.objects], [o.box for o in b.objects], atol=1e-2)
        assert [o.mask is None for o in b.objects] == [False] * len(b.objects)


def test_an_image_that_cannot_be_read_stops_no_other(detector, drawings, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [tmp_path / "bad.png", *find_images([drawings])]
    answers = list(stream(load(detector), files, batch_size=2, threshold=0.0))
    assert answers[0].error is not None
    assert all(a.objects for a in answers[1:])


def test_json_pictures_and_the_threshold(ask, detector, drawings, tmp_path):
    answer = ask("predict", detector, drawings, "--json", "--threshold", 0, "--draw", tmp_path / "drawn")
    facts = [json.loads(line) for line in answer.out.splitlines()]
    assert [(f["height"], f["width"]) for f in facts] == [(96, 96), (60, 96), (96, 50)]
    assert all(f["objects"][0]["class"] in CLASSES for f in facts)
    with Image.open(tmp_path / "drawn" / "000000000008.png") as picture:
        assert picture.size == (480, 300)
    nothing = ask("predict", detector, drawings, "--threshold", 1)
    assert nothing.out.count("nothing") == 3


def test_tiles_and_larger_sides_tell_their_memory(ask, detector, drawings):
    one = drawings / "000000000007.png"
    for options in (("--window", 64), ("--window", 64, "--stride", 32), ("--side", 128)):
        answer = ask("predict", detector, one, "--threshold", 0, "--json", *options)
        assert answer.code == 0
        assert answer.err.startswith("Peak memory: ")
        for row in json.loads(answer.out)["objects"]:
            x, y, w, h = row["bbox"]
            assert -0.01 <= x <= x + w <= 96.01
            assert -0.01 <= y <= y + h <= 96.01


@pytest.fixture
def large(tmp_path):
    """A picture whose sides the detector's preprocessing shrinks five times, and its file."""
    pixels = np.tile(draw(0, size=96).image, (4, 5, 1))[:320, :480]
    Image.fromarray(pixels).save(tmp_path / "large.png")
    return tmp_path / "large.png"


def shapes_seen(model, monkeypatch):
    """The shapes of the batches that the model is shown from now on."""
    seen, detect = [], model.detect

    def watched(images, *args, **kwargs):
        seen.append(tuple(images.shape))
        return detect(images, *args, **kwargs)

    monkeypatch.setattr(model, "detect", watched)
    return seen


def test_images_of_their_own_size_are_not_resized(detector, drawings, large, monkeypatch):
    model = load(detector)
    seen, trained = shapes_seen(model, monkeypatch), model.input
    files = [large, *find_images([drawings])]
    found = list(stream(model, files, threshold=0.0, side="own"))
    assert seen == [(1, 3, 320, 480), (1, 3, 96, 96), (1, 3, 60, 96), (1, 3, 96, 50)]
    assert [p.seen for p in found] == [p.size for p in found]
    assert model.input == trained  # what is saved with the model afterwards is what it was trained with
    image = preprocess(decode(large), Preprocess(size=320, mode="fit"))
    want = model.detect(image[None])[0]
    np.testing.assert_allclose([o.box for o in found[0].objects], want.boxes, atol=1e-2)


def test_sides_are_those_of_tiles_where_there_are_some(detector, large, monkeypatch):
    """The whole picture is looked at as the weights were trained, or tiles would save no memory."""
    model = load(detector)
    seen = shapes_seen(model, monkeypatch)
    for side, tile in ((None, 64), ("own", 160), (200, 200)):
        seen.clear()
        list(stream(model, [large], threshold=0.0, side=side, window=160, stride=160))
        assert seen == [(1, 3, 64, 96), *[(1, 3, tile, tile)] * 6]


def test_a_picture_that_is_shrunk_much_gets_a_hint(ask, detector, drawings, large):
    answer = ask("predict", detector, large, drawings)
    hint, peak = answer.err.splitlines()
    assert hint == (
        f"tetravit predict: {large}: its 480 x 320 pixels are resized to 96 x 64; --side own keeps them all,"
        " --window PX predicts on tiles too."
    )
    assert peak.startswith("Peak memory: ")
    copy = large.with_name("other.png")
    copy.write_bytes(large.read_bytes())
    assert ask("predict", detector, large, copy).err.startswith(hint + " The same holds for 1 more.\n")
    for options in (("--side", "own"), ("--window", 160)):
        assert ask("predict", detector, large, *options).err.startswith("Peak memory: ")


def test_tiles_fill_batches_and_find_more_than_one_image_may(detector, drawings, monkeypatch):
    model, sizes = load(detector), []
    detect = model.detect

    def counted(images, *args, **kwargs):
        sizes.append(len(images))
        return detect(images, *args, **kwargs)

    monkeypatch.setattr(model, "detect", counted)
    files = find_images([drawings])[:1]
    found = next(stream(model, files, threshold=0.0, window=48, stride=48, batch_size=3))
    assert sizes == [1, 3, 1]  # all of it, then four tiles
    assert len(found.objects) > SMALL["max_detections"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", 1.5), "threshold is a score from 0 to 1; got 1.5."),
        (("--side", 0), "side is 1 or more; got 0."),
        (("--side", "all"), "--side takes pixels, or own; got 'all'."),
        (("--stride", 5), "stride goes with a window, and is at most its side; got stride=5, window=None."),
        (("--topk", 3), "--topk is for classifiers; {detector} is a detector."),
    ],
)
def test_what_is_refused(ask, detector, drawings, options, message):
    answer = ask("predict", detector, drawings, *options)
    assert (answer.code, answer.err) == (2, f"tetravit predict: {message.format(detector=detector)}\n")


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Drawings in COCO's layout, and its annotations."""
    root = tmp_path_factory.mktemp("layout")
    list(write_shapes(root, train=1, val=2, size=64))
    return root / "coco" / "val2017", root / "coco" / "annotations" / "instances_val2017.json"


def test_results_have_the_ids_of_the_annotations(ask, detector, layout, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    folder, annotations = layout
    table = json.loads(annotations.read_text())
    for i, image in enumerate(table["images"]):
        image["id"] = 1000 + i  # no longer what the file name says
    for row in table["annotations"]:
        row["image_id"] = 1000
    renumbered = tmp_path / "val.json"
    renumbered.write_text(json.dumps(table))
    file = tmp_path / "results.json"
    options = ("--threshold", 0, "--results", file, "--annotations", renumbered, "--json")
    answer = ask("predict", detector, folder, *options)
    told = f"Ids of images and categories are those of {renumbered}."
    rows = json.loads(file.read_text())
    assert answer.err == f"Wrote {len(rows)} objects into {file}. {told}\n"
    truth = coco.COCO(str(renumbered))
    found = truth.loadRes(str(file))  # refuses images that the annotations do not list
    assert set(found.getImgIds()) == {1000, 1001}
    names = [o["class"] for line in answer.out.splitlines() for o in json.loads(line)["objects"]]
    assert [truth.cats[row["category_id"]]["name"] for row in rows] == names
    assert {row["category_id"] for row in rows} <= set(truth.getCatIds())


def test_ids_that_cannot_be_told_are_refused(ask, detector, layout, tmp_path):
    folder, annotations = layout
    table = json.loads(annotations.read_text())
    first = sorted(folder.iterdir())[0]
    asked = ("predict", detector, folder, "--results", tmp_path / "x.json")

    def refused(*options, **changes):
        file = tmp_path / "ids.json"
        file.write_text(json.dumps(table | changes))
        answer = ask(*asked, "--annotations", file, *options)
        assert (answer.code, answer.out) == (2, "")
        return answer.err.removeprefix("tetravit predict: ")

    fewer = [{**row, "name": row["name"].replace("ring", "rang")} for row in table["categories"]]
    assert refused(categories=fewer) == (
        "ids.json has no category 'ring', which the model finds. Did you mean 'rang'?\n"
    )
    assert refused(images=table["images"][1:]) == f"ids.json lists no image '{first.name}'.\n"
    number = table["images"][0]["id"]
    twice = [*table["images"], {**table["images"][0], "id": 5}]
    message = f"ids.json: the image '{first.name}' has two ids, {number} and 5.\n"
    assert refused(images=twice) == message
    copy = tmp_path / "copy" / first.name
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    answer = ask(
        "predict", detector, first, copy, "--results", tmp_path / "x.json", "--annotations", annotations
    )
    assert answer.err == f"tetravit predict: Two images have the id {number}: '{first}' and '{copy}'.\n"
    answer = ask("predict", detector, folder, "--annotations", annotations)
    assert answer.err == ("tetravit predict: --annotations goes with --results.\n")


def test_images_without_numbers_are_counted_from_1(ask, detector, drawings, tmp_path):
    for i, source in enumerate(sorted(drawings.iterdir())):
        (tmp_path / ("x.png" if i == 1 else source.name)).write_bytes(source.read_bytes())
    file = tmp_path / "results.json"
    answer = ask("predict", detector, tmp_path, "--threshold", 0, "--results", file)
    assert {row["image_id"] for row in json.loads(file.read_text())} == {1, 2, 3}
    assert "Ids of images are counted from 1, ids of categories counted from 1;" in answer.err


def test_results_are_for_detectors(ask, weights, images, tmp_path):
    answer = ask("predict", weights, images, "--results", tmp_path / "x.json")
    assert answer.err == f"tetravit predict: --results is for detectors; {weights} is a classifier.\n"


def test_the_numbers_of_cocos_classes_have_its_gaps():
    numbers = category_ids(class_names())
    assert len(numbers) == 80
    assert (numbers[10], numbers[11], numbers[79]) == (11, 13, 90)
    assert category_ids(CLASSES) == tuple(range(1, 9))


def test_boxes_masks_and_captions_are_drawn():
    image = torch.full((3, 120, 480), 255, dtype=torch.uint8)
    mask = np.zeros((120, 480), bool)
    mask[40:80, 100:200] = True
    picture = outlined(image, [(90, 30, 210, 90)], ["bar 98 %"], [(200, 0, 0)], [(100, mask[:, 100:200])])
    pixels = np.asarray(picture)
    assert tuple(pixels[60, 150]) == (230, 140, 140)  # under the mask
    assert tuple(pixels[60, 90]) == (200, 0, 0)  # the outline
    assert tuple(pixels[100, 300]) == (255, 255, 255)
    assert (pixels[5:29, 95:130] != 255).any()  # the caption above


def test_evaluate_puts_scores_and_classes_in_tables(ask, detector, tmp_path):
    data = ("data.name=shapes_det", "data.options={size = 96, count = 2}")
    row = json.loads(ask("evaluate", detector, *data, "--json", "--per-class").out)
    assert 0 <= row["mask_ap"] <= 1
    assert [c["class"] for c in row["classes"]] == list(CLASSES)
    assert {"objects", "box_ap", "mask_ap50"} <= set(row["classes"][0])
    shown = ask("evaluate", detector, *data, "--per-class").out
    assert "mask_ap50" in shown
    assert "triangle" in shown
    wrong = ask("evaluate", detector)
    assert wrong.err == "tetravit evaluate: The data set 'coco' needs its root.\n"
