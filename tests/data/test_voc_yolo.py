"""Objects in Pascal VOC's XML and in YOLO's text: read into the same targets, their faults counted or refused."""

import pytest
import torch
from PIL import Image

from tetravit.data.datasets import DATASETS

HEIGHT, WIDTH = 40, 60


def xml(*objects, size=f"<width>{WIDTH}</width><height>{HEIGHT}</height>", file="a.png"):
    rows = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, hard, x1, y1, x2, y2 in objects
    )
    return f"<annotation><filename>{file}</filename><size>{size}</size>{rows}</annotation>"


@pytest.fixture
def voc(tmp_path):
    def opened(text, split="val", listed="a", **options):
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages" / "a.png")
        (tmp_path / "Annotations" / "a.xml").write_text(text)
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{listed}\n")
        return DATASETS["voc_det"](tmp_path, split, **options)

    return opened


def test_voc_counts_pixels_from_1_and_keeps_difficult_objects_apart(voc):
    dataset = voc(xml(("dog", 0, 1, 1, 10, 20), ("person", 1, 11, 11, 20, 20)))
    assert len(dataset.class_names) == 20
    target = dataset[0].target
    assert target.boxes.tolist() == [[0, 0, 10, 20], [10, 10, 20, 20]]
    assert [dataset.class_names[k] for k in target.labels] == ["dog", "person"]
    assert target.crowd.tolist() == [False, True]
    assert target.masks is None
    assert voc(xml(("cog", 0, 1, 1, 9, 9)), classes=("cog",))[0].target.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            ("dig", 0, 1, 1, 9, 9),
            "objects of unknown classes (dig), left out; data.options.classes names your own",
        ),
        (("dog", 0, 9, 1, 8, 9), "boxes with zero or negative sides, left out"),
        (("dog", 0, "nan", 1, 8, 9), "boxes with sides that are NaN or infinite, left out"),
        (("dog", 0, "x", 1, 8, 9), "boxes with sides that are NaN or infinite, left out"),
        (("dog", 0, 70, 1, 80, 9), "boxes outside their image, left out"),
    ],
)
def test_what_voc_cannot_mean_is_counted(voc, row, problem):
    dataset = voc(xml(("dog", 0, 1, 1, 10, 20), row))
    assert len(dataset[0].target.boxes) == 1
    assert dataset.problems.lines() == [f"1 {problem}; the first: a.xml, object 2"]


@pytest.mark.parametrize("side", ["inf", "nan", "0.5", "1e9", "-3", "0", ""])
@pytest.mark.parametrize("split", ["train", "val"])
def test_where_the_xml_has_no_size_the_image_has_one(voc, side, split):
    size = f"<width>{side}</width><height>{HEIGHT}</height>"
    dataset = voc(xml(("dog", 0, 1, 1, 10, 20), ("cat", 0, 70, 1, 80, 20), size=size), split)
    assert dataset[0].target.boxes.tolist() == [[0, 0, 10, 20]]
    assert dataset.problems.lines() == ["1 boxes outside their image, left out; the first: a.xml, object 2"]


def test_without_a_known_class_the_cause_and_its_cure_are_said(voc, tmp_path):
    with pytest.raises(ValueError) as error:
        voc(xml(("red", 0, 1, 1, 10, 20), ("blue", 0, 1, 1, 10, 20)), "train")
    assert str(error.value) == (
        f"No image in {str(tmp_path / 'JPEGImages')!r} has an object to train on: 2 objects"
        " of unknown classes (red, blue), left out; data.options.classes names your own; the first: a.xml,"
        " object 1; 1 images without an object to train on, left out; the first: a.png."
    )


def test_names_that_a_voc_list_repeats_are_read_once(voc):
    dataset = voc(xml(("dog", 0, 1, 1, 10, 20)), listed="a\na\na")
    assert len(dataset) == 1
    assert dataset.problems.lines() == ["2 names that the list repeats, read once; the first: val.txt, a"]


def test_what_voc_lacks_is_said(voc, tmp_path):
    with pytest.raises(ValueError, match="The data set 'voc_det' needs its root"):
        DATASETS["voc_det"](None, "val")
    with pytest.raises(ValueError) as error:
        voc("<annotation>")
    file = tmp_path / "Annotations" / "a.xml"
    assert str(error.value) == f"Cannot read {str(file)!r}: no element found: line 1, column 12."
    with pytest.raises(ValueError) as error:
        voc(xml(), listed="../b")
    xml_folder = tmp_path / "Annotations"
    assert str(error.value) == (
        f"1 of the 1 images of the val list have no XML in {str(xml_folder)!r}; the first: '../b'."
    )
    assert len(voc(xml(file="../../a.png"))) == 1  # the image of that name in JPEGImages
    with pytest.raises(ValueError) as error:
        voc(xml(), val="test")
    file = tmp_path / "ImageSets" / "Main" / "test.txt"
    assert str(error.value) == (
        f"Cannot read {str(file)!r}: no such file or directory; data.options.train and val name the lists of the"
        " parts. data.split=0.1 divides a set without parts."
    )


@pytest.fixture
def yolo(tmp_path):
    def opened(text, split="val", names="cat\ndog\n", file="classes.txt"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / split / f"{name}.png")
        (tmp_path / "labels" / split / "a.txt").write_text(text)
        (tmp_path / "labels" / split / "b.txt").touch()
        (tmp_path / file).write_text(names)
        return DATASETS["yolo"](tmp_path, split)

    return opened


def test_yolo_boxes_are_shares_of_the_image(yolo):
    dataset = yolo("1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.2 0.2\n")
    assert dataset.class_names == ("cat", "dog")
    target = dataset[0].target
    torch.testing.assert_close(target.boxes, torch.tensor([[15.0, 15, 45, 25], [0, 0, 12, 8]]))
    assert target.labels.tolist() == [1, 0]
    assert target.area.tolist() == pytest.approx([300, 96])
    assert dataset[1].target.boxes.shape == (0, 4)
    assert len(yolo("1 0.5 0.5 0.5 0.25", "train")) == 1  # images without an object do not train
    assert dataset.wide is None  # not needed to evaluate
    assert yolo("1 0.5 0.5 0.5 0.25", "train").wide.tolist() == [True]


def test_yolo_sizes_are_those_of_the_files_so_images_are_grouped_by_orientation(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part / "train").mkdir(parents=True)
    for number, size in enumerate([(60, 40), (40, 60), (90, 40), (40, 90)]):
        Image.new("RGB", size).save(tmp_path / "images" / "train" / f"{number}.png")
        (tmp_path / "labels" / "train" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("dog\n")
    assert DATASETS["yolo"](tmp_path, "train").info.wide.tolist() == [True, False, True, False]


def test_yolo_polygons_are_masks(yolo):
    target = yolo("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75")[0].target
    assert target.boxes.tolist() == [[15, 10, 45, 30]]
    assert target.masks[0, 10:30, 15:45].all()
    assert target.masks.sum() == 600


@pytest.mark.parametrize(
    "text",
    [
        "path: .\nnames: ['cat', \"dog\"]\nnc: 2\n",
        "names: [cat, dog]",
        "names:\n  0: cat\n  1: dog\n",
        "names:\n- cat\n- dog",
        "names:\n  1: dog  # the second\n  0: 'cat'\nnc: 2\n",
        "names: {1: dog, 0: cat}",
        "# of pets\n\nnames:\n  0: cat\n  # and\n\n  1: dog\n",
    ],
)
def test_yolo_names_in_yaml(yolo, text):
    assert yolo("0 0.5 0.5 0.1 0.1", names=text, file="data.yaml").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "2 0.5 0.5 0.1 0.1",
            "objects of unknown classes (2), left out; names has 0 to 1: 'cat', 'dog'",
        ),
        (
            "0.5 0.5 0.5 0.1 0.1",
            "objects of unknown classes (0.5), left out; names has 0 to 1: 'cat', 'dog'",
        ),
        ("0 0.5 0.5 0 0.1", "boxes with zero or negative sides, left out"),
        ("0 0.5 0.5 nan 0.1", "boxes with sides that are NaN or infinite, left out"),
        ("0 1.5 1.5 0.1 0.1", "boxes outside their image, left out"),
        ("0 0.5 0.5 0.1", "lines that are neither a box nor a polygon, left out"),
        (
            "0 48 36 20 20",
            "lines in pixels, left out: YOLO's numbers are shares of the image, from 0 to 1",
        ),
    ],
)
def test_what_yolo_cannot_mean_is_counted(yolo, line, problem):
    dataset = yolo(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    assert len(dataset[0].target.boxes) == 1
    assert dataset.problems.lines() == [f"1 {problem}; the first: a.txt, line 2"]


def test_lines_that_are_not_numbers_are_shown(yolo):
    dataset = yolo("0 0.5 0.5 0.1 0.1\n0 a b c d\n")
    assert dataset.problems.lines() == [
        "1 lines that are not numbers, left out; the first: a.txt, line 2: '0 a b c d'"
    ]


def test_a_faulty_polygon_costs_no_box(yolo):
    dataset = yolo("0 0.1 0.1 1e9 0.1 0.5 0.5\n")
    assert len(dataset[0].target.boxes) == 1
    assert dataset.problems.lines() == [
        "1 polygons that reach far outside their image, left out; the first: a.txt, line 1"
    ]


def test_images_and_label_files_that_are_alone_are_counted(yolo, tmp_path):
    yolo("0 0.5 0.5 0.1 0.1")
    labels = tmp_path / "labels" / "val"
    (labels / "b.txt").rename(labels / "c.txt")
    (labels / "classes.txt").write_text("cat\ndog\n")  # where some tools put them
    dataset = DATASETS["yolo"](tmp_path, "val")
    assert [len(dataset[i].target.boxes) for i in range(2)] == [1, 0]
    assert dataset.problems.lines() == [
        "1 images without a label file, taken for empty; the first: images/val/b.png",
        "1 label files without an image, left out; the first: c.txt",
    ]


@pytest.mark.parametrize(
    ("names", "file", "message"),
    [
        (
            "names:\n  0: cat\n  2: dog\n",
            "data.yaml",
            "data.yaml counts its classes from 0 without gaps; 1 of 0 to 2 has no name.",
        ),
        (
            "names: {1: cat}",
            "data.yaml",
            "data.yaml counts its classes from 0 without gaps; 0 of 0 to 1 has no name.",
        ),
        ("names:\n  0: cat\n  0: dog\n", "data.yaml", "data.yaml gives the key '0' twice."),
        ("names: {cat, dog}", "data.yaml", "data.yaml has class names as NUMBER: NAME; got 'cat'."),
        (
            "cat\n\ndog\n",
            "classes.txt",
            "classes.txt has the name of a class in every line; line 2 is empty.",
        ),
    ],
)
def test_class_names_with_gaps_are_refused(yolo, names, file, message):
    with pytest.raises(ValueError) as error:
        yolo("0 0.5 0.5 0.1 0.1", names=names, file=file)
    assert str(error.value) == message


def test_what_yolo_lacks_is_said(yolo, tmp_path):
    with pytest.raises(ValueError, match="The data set 'yolo' needs its root"):
        DATASETS["yolo"](None, "val")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError) as error:
        DATASETS["yolo"](tmp_path, "val")
    assert str(error.value) == (
        f"There is no folder {str(tmp_path / 'images' / 'val')!r}; val: in data.yaml, or data.val=FOLDER, names it."
        " data.split=0.1 divides a set without parts."
    )
    with pytest.raises(ValueError) as error:
        yolo("", names="")
    assert str(error.value) == (
        f"The class names of {str(tmp_path)!r} stand in classes.txt, one per line, or data.yaml; got none."
    )
