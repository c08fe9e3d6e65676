"""Sets of objects as people have them: what is plain is read as its plain form is; the rest is refused in one line.

A set of 6 training and 3 validation images, each with a red and a blue rectangle, is written plainly and then
deformed. A case is right if images, boxes, labels and areas are those of the plain set, to the bit; so are
its losses.
"""

import json
import random
import shutil
import unicodedata
from functools import cache

import pytest
import torch
from PIL import Image, ImageDraw

from tetravit.data.build import build_dataset, for_head
from tetravit.data.config import DataConfig

SIDE = 96
PARTS = {"train": (6, 0), "val": (3, 1000)}
CLASSES = ("red", "blue")


@cache
def picture(seed):
    """An image, and the class, left, top, width and height of its rectangles."""
    rnd = random.Random(seed)
    image, boxes = Image.new("RGB", (SIDE, SIDE), (200, 200, 200)), []
    for label, colour in enumerate(((220, 20, 20), (20, 20, 220))):
        width, height = rnd.randint(24, 40), rnd.randint(24, 40)
        x, y = rnd.randint(0, 20) + 34 * label, rnd.randint(0, SIDE - height - 1)
        ImageDraw.Draw(image).rectangle([x, y, x + width - 1, y + height - 1], fill=colour)
        boxes.append((label, x, y, width, height))
    return image, boxes


def coco(root):
    """COCO's own layout."""
    for part, (count, first) in PARTS.items():
        images, rows = [], []
        folder = root / f"{part}2017"
        folder.mkdir(parents=True)
        for i in range(count):
            image, boxes = picture(first + i)
            image.save(folder / f"im {i}é.png")
            images.append({"id": i + 1, "file_name": f"im {i}é.png", "width": SIDE, "height": SIDE})
            for k, x, y, w, h in boxes:
                ring = [x, y, x + w, y, x + w, y + h, x, y + h]
                row = {"id": len(rows) + 1, "image_id": i + 1, "category_id": k + 1, "bbox": [x, y, w, h]}
                rows.append({**row, "area": w * h, "iscrowd": 0, "segmentation": [ring]})
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        table = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(table))


def yolo(root, line=None, yaml="names: [red, blue]\n"):
    line = line or (lambda values: " ".join(values))
    for part, (count, first) in PARTS.items():
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for i in range(count):
            image, boxes = picture(first + i)
            image.save(root / "images" / part / f"{i}.png")
            rows = [
                [str(k), *(f"{v / SIDE:.6f}" for v in (x + w / 2, y + h / 2, w, h))]
                for k, x, y, w, h in boxes
            ]
            text = "".join(f"{line(row)}\n" for row in rows)
            (root / "labels" / part / f"{i}.txt").write_text(text)
    (root / "data.yaml").write_text(yaml)


def voc(root, stem="{:06}", size=SIDE, ending="png", filename="{}.png"):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, (count, first) in PARTS.items():
        stems = [stem.format(first + i) for i in range(count)]
        for i, name in enumerate(stems):
            image, boxes = picture(first + i)
            image.save(root / "JPEGImages" / f"{name}.{ending}", lossless=True)
            objects = "".join(
                f"<object><name>{CLASSES[k]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for k, x, y, w, h in boxes
            )
            sides = f"<size><width>{size}</width><height>{size}</height></size>"
            text = f"<annotation><filename>{filename.format(name)}</filename>{sides}{objects}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(stems) + "\n")


def read(root, name, part="train", **options):
    top = {key: options.pop(key) for key in ("val", "train", "split") if key in options}
    if name == "voc_det":
        options.setdefault("classes", ["red", "blue"])
    return build_dataset(DataConfig(name=name, root=str(root), batch_size=2, options=options, **top), part)


def content(dataset):
    """Everything that a loss depends on."""
    rows = []
    for i in range(len(dataset)):
        sample, target = dataset[i], dataset[i].target
        rows.append((sample.image, target.boxes, target.labels, target.area))
    return rows


def same(a, b):
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        for x, y in zip(one, two, strict=True):
            assert torch.equal(x, y)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The plain sets, read: {(name, part): content}."""
    table = {}
    for name, make in (("coco", coco), ("yolo", yolo), ("voc_det", voc)):
        root = tmp_path_factory.mktemp(name)
        make(root)
        for part in PARTS:
            table[name, part] = content(read(root, name, part))
    return table


# COCO: each case changes the table of a part (and the files).


def each(kind, **changes):
    """A change of every row; a value that is called gives the new one from the row."""

    def change(table, root, part):
        for row in table[kind]:
            for key, value in changes.items():
                row[key] = value(row) if callable(value) else value

    return change


def without(kind, *keys):
    def change(table, root, part):
        for row in table[kind]:
            for key in keys:
                row.pop(key)

    return change


def renamed(to):
    return each("images", file_name=lambda row: to(row["file_name"]))


def ring(row):
    return row["segmentation"][0]


def points(row):
    values = ring(row)
    return [list(pair) for pair in zip(values[::2], values[1::2], strict=True)]


def other_order(table, root, part):
    if part == "val":
        table["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
        for row in table["annotations"]:
            row["category_id"] = 3 - row["category_id"]


def texts_as_ids(table, root, part):
    for row in table["images"]:
        row["id"] = f"img_{row['id']}"
    for row in table["annotations"]:
        row["image_id"] = f"img_{row['image_id']}"


def categories_as_texts(table, root, part):
    for row in table["categories"]:
        row["id"] = str(row["id"])
    for row in table["annotations"]:
        row["category_id"] = float(row["category_id"])


def grouped(table, root, part):
    table["categories"] = [
        {"id": 0, "name": "shapes", "supercategory": "none"},
        *({**row, "supercategory": "shapes"} for row in table["categories"]),
    ]


def deeper(table, root, part):
    folder = root / f"{part}2017"
    (folder / "images").mkdir()
    for file in list(folder.glob("*.png")):
        file.rename(folder / "images" / file.name)
    for row in table["images"]:
        row["file_name"] = f"images\\{row['file_name']}"


COCO = {
    "plain": lambda table, root, part: None,
    "flat polygon": each("annotations", segmentation=ring),
    "polygon of points": each("annotations", segmentation=points),
    "polygons of points": each("annotations", segmentation=lambda row: [points(row)]),
    "area of 0": each("annotations", area=0, segmentation=[]),
    "area of null": each("annotations", area=None),
    "no area": without("annotations", "area"),
    "categories in another order": other_order,
    "backslashes": deeper,
    "dot and slashes": renamed(lambda name: f".//{name}"),
    "a folder that is not there": renamed(lambda name: f"C:\\photos\\{name}"),
    "a path of another computer": renamed(lambda name: f"/home/me/data/{name}"),
    "capital ending": renamed(lambda name: name.replace(".png", ".PNG")),
    "another ending": renamed(lambda name: name.replace(".png", ".jpg")),
    "no ending": renamed(lambda name: name.removesuffix(".png")),
    "escapes of a URL": renamed(lambda name: name.replace(" ", "%20").replace("é", "%C3%A9")),
    "URL": renamed(lambda name: f"https://host/x/{name.replace(' ', '%20')}?size=1"),
    "decomposed letters": renamed(lambda name: unicodedata.normalize("NFD", name)),
    "image ids as text": each("annotations", image_id=lambda row: str(row["image_id"])),
    "image ids as floats": each("images", id=lambda row: float(row["id"])),
    "ids with zeros in front": each("annotations", image_id=lambda row: f"00{row['image_id']}"),
    "ids that are names": texts_as_ids,
    "category ids as text and float": categories_as_texts,
    "no sizes": without("images", "width", "height"),
    "sizes of 0": each("images", width=0, height=0),
    "sizes as text": each("images", width="96", height="96"),
    "annotation ids repeat": each("annotations", id=lambda row: row["id"] % 2),
    "no annotation ids": without("annotations", "id"),
    "iscrowd is null": each("annotations", iscrowd=None),
    "iscrowd is false": each("annotations", iscrowd=False),
    "no iscrowd": without("annotations", "iscrowd"),
    "area is null": each("annotations", area=None),
    "a grouping category": grouped,
    "box from the polygon": without("annotations", "bbox"),
    "faulty masks": each("annotations", segmentation=[[1, 2, 3]]),
}


@pytest.mark.parametrize("name", COCO)
def test_coco(tmp_path, plain, name):
    coco(tmp_path)
    for part in PARTS:
        file = tmp_path / "annotations" / f"instances_{part}2017.json"
        table = json.loads(file.read_text())
        COCO[name](table, tmp_path, part)
        file.write_text("\ufeff" * (name == "plain") + json.dumps(table), encoding="utf-8")
    for part in PARTS:
        dataset = read(tmp_path, "coco", part)
        same(content(dataset), plain["coco", part])
        assert dataset.class_names == CLASSES
        if part == "train":
            assert not dataset.info.wide.any()


def roboflow(root):
    for part, new in (("train", "train"), ("val", "valid")):
        (root / f"{part}2017").rename(root / new)
        (root / "annotations" / f"instances_{part}2017.json").rename(root / new / "_annotations.coco.json")


def by_part(root):
    for part in PARTS:
        (root / "images").mkdir(exist_ok=True)
        (root / f"{part}2017").rename(root / "images" / part)
        (root / "annotations" / f"instances_{part}2017.json").rename(root / "annotations" / f"{part}.json")


def loose(root):
    for part in PARTS:
        (root / "annotations" / f"instances_{part}2017.json").rename(root / f"my_{part}_labels.json")


def one_folder(root):
    """All images in one folder, named with a folder of another computer in front."""
    (root / "images").mkdir()
    for part in PARTS:
        file = root / "annotations" / f"instances_{part}2017.json"
        table = json.loads(file.read_text())
        for row in table["images"]:
            old, new = root / f"{part}2017" / row["file_name"], f"{part}_{row['file_name']}"
            old.rename(root / "images" / new)
            row["file_name"] = f"D:\\all\\{new}"
        file.write_text(json.dumps(table))
        (root / f"{part}2017").rmdir()


@pytest.mark.parametrize("layout", [roboflow, by_part, loose, one_folder])
def test_layouts_of_coco(tmp_path, plain, layout):
    coco(tmp_path)
    layout(tmp_path)
    for part in PARTS:
        same(content(read(tmp_path, "coco", part)), plain["coco", part])


def test_roboflow_by_the_templates_of_its_options(tmp_path, plain):
    coco(tmp_path)
    roboflow(tmp_path)
    options = {"annotations": "{split}/_annotations.coco.json", "images": "{split}"}
    for part in PARTS:
        same(content(read(tmp_path, "coco", part, **options)), plain["coco", part])


def test_parts_of_coco_are_files_that_the_recipe_names(tmp_path, plain):
    coco(tmp_path)
    given = {"val": "annotations/instances_val2017.json"}
    same(content(read(tmp_path, "coco", "val", **given)), plain["coco", "val"])
    both = read(tmp_path, "coco", train=[f"annotations/instances_{part}2017.json" for part in PARTS])
    same(content(both), plain["coco", "train"] + plain["coco", "val"])
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    divided = [read(tmp_path, "coco", part, split=0.34) for part in PARTS]
    assert [len(dataset) for dataset in divided] == [4, 2]


# YOLO


def visible(values):
    x, y = values[1:3]
    return " ".join([*values, x, y, "2", x, y, "1", "0", "0", "0"])


def marked(values):
    """The first line of a file begins with a byte order mark."""
    return "\ufeff" * (values[0] == "0") + " ".join(values)


YOLO = {
    "commas": {"line": ",".join},
    "commas and spaces": {"line": ", ".join},
    "semicolons": {"line": ";".join},
    "tabs": {"line": "\t".join},
    "decimal commas": {"line": lambda values: " ".join(values).replace(".", ",")},
    "one keypoint": {
        "line": lambda v: " ".join([*v, *v[1:3]]),
        "yaml": "kpt_shape: [1, 2]\nnames: [red, blue]\n",
    },
    "three keypoints": {"line": visible, "yaml": "kpt_shape: [3, 3]\nnames: {0: red, 1: blue}\n"},
    "block of names": {"yaml": "path: .\ntrain: images/train\nnames:\n  0: red\n  1: 'blue' # sky\n"},
    "list of names": {"yaml": "nc: 2\nnames:\n- red\n- blue\n"},
    "byte order mark": {"yaml": "\ufeffnames: [red, blue]\r\n", "line": marked},
}


@pytest.mark.parametrize("name", YOLO)
def test_yolo(tmp_path, plain, name):
    yolo(tmp_path, **YOLO[name])
    for part in PARTS:
        dataset = read(tmp_path, "yolo", part)
        same(content(dataset), plain["yolo", part])
        assert dataset.class_names == CLASSES


def swapped(root):
    for part, new in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (root / new).mkdir(exist_ok=True)
            (root / kind / part).rename(root / new / kind)
    text = "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['red', 'blue']\n"
    (root / "data.yaml").write_text(text)


def listed(root):
    for part, (count, _) in PARTS.items():
        lines = [f"./images/{part}/{i}.png" for i in range(count)]
        (root / f"{part}.txt").write_text("\r\n".join(lines))
    (root / "data.yaml").write_text("path: nowhere\ntrain: train.txt\nval: [val.txt]\nnames: [red, blue]\n")


def in_capitals(root):
    for file in list(root.rglob("*.txt")):
        file.rename(file.with_suffix(".TXT"))
    for file in list(root.rglob("*.png")):
        file.rename(file.with_suffix(".PNG"))
    (root / "data.yaml").rename(root / "dataset.yml")


@pytest.mark.parametrize("layout", [swapped, listed, in_capitals])
def test_layouts_of_yolo(tmp_path, plain, layout):
    yolo(tmp_path)
    layout(tmp_path)
    for part in PARTS:
        same(content(read(tmp_path, "yolo", part)), plain["yolo", part])


@pytest.mark.parametrize(
    "names", ["['red [matt]', 'no']", "{0: 'red [matt]', 1: no}", "\n- red [matt]\n- no # 2"]
)
def test_names_are_as_yaml_has_them(tmp_path, names):
    yolo(tmp_path, yaml=f"nc: 2\nnames: {names}\n")
    assert read(tmp_path, "yolo").class_names == ("red [matt]", "no")


@pytest.mark.parametrize(("line", "shape"), [(visible, "3, 3"), (lambda v: " ".join([*v, *v[1:3]]), "1, 2")])
def test_rows_that_may_be_keypoints_are_no_polygons(tmp_path, line, shape):
    yolo(tmp_path, line=line)
    count = shape[0]
    with pytest.raises(ValueError) as error:
        read(tmp_path, "yolo")
    assert str(error.value) == (
        f"12 lines look like boxes with {count} keypoints each; the first: 0.txt, line 1. kpt_shape: [{shape}] in"
        f" data.yaml, or data.options.kpt_shape=[{shape.replace(' ', '')}], says so; data.options.kpt_shape=[0,0]"
        " that they are polygons."
    )


def test_a_head_without_masks_keeps_every_box(tmp_path, plain):
    """One image in three is outlined with polygons, the others with boxes."""
    yolo(tmp_path)
    for part, (count, first) in PARTS.items():
        for i in range(0, count, 3):
            rows = []
            for k, x, y, w, h in picture(first + i)[1]:
                corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
                rows.append(" ".join([str(k), *(repr(v / SIDE) for corner in corners for v in corner)]))
            (tmp_path / "labels" / part / f"{i}.txt").write_text("\n".join(rows))
    config = DataConfig(name="yolo", root=str(tmp_path), batch_size=2)
    boxes = build_dataset(for_head(config, has_masks=False), "train")
    assert len(boxes) == 6
    assert boxes.info.problems == ()
    for (_, a, *_), (_, b, *_) in zip(content(boxes), plain["yolo", "train"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    assert len(build_dataset(for_head(config, has_masks=True), "train")) == 2


# Pascal VOC

VOC = {
    "spaces": {"stem": "IMG {:04} (1)"},
    "sizes of 0": {"size": 0},
    "sizes that are none": {"size": "unknown"},
    "file name without ending": {"filename": "{}"},
    "file name with another ending": {"filename": "{}.jpg"},
    "a path as file name": {"filename": "C:\\photos\\{}.JPG"},
    "no file name": {"filename": ""},
    "another format": {"ending": "webp"},
}


@pytest.mark.parametrize("name", VOC)
def test_voc(tmp_path, plain, name):
    voc(tmp_path, **VOC[name])
    for part in PARTS:
        same(content(read(tmp_path, "voc_det", part)), plain["voc_det", part])


def with_endings(root):
    for file in (root / "ImageSets" / "Main").iterdir():
        file.write_text("\ufeff" + file.read_text().replace("\n", ".png\r\n"))


def side_by_side(root):
    for part, new in (("train", "train"), ("val", "valid")):
        (root / new).mkdir()
        for name in (root / "ImageSets" / "Main" / f"{part}.txt").read_text().split():
            (root / "JPEGImages" / f"{name}.png").rename(root / new / f"{name}.png")
            (root / "Annotations" / f"{name}.xml").rename(root / new / f"{name}.xml")
    for name in ("ImageSets", "JPEGImages", "Annotations"):
        shutil.rmtree(root / name)


@pytest.mark.parametrize("layout", [with_endings, side_by_side])
def test_layouts_of_voc(tmp_path, plain, layout):
    voc(tmp_path)
    layout(tmp_path)
    for part in PARTS:
        same(content(read(tmp_path, "voc_det", part)), plain["voc_det", part])


def test_classes_of_voc_stand_in_a_list(tmp_path, plain):
    voc(tmp_path)
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb\nbackground:0,0,0::\nred:250,0,0::\nblue:0,0,9::\n"
    )
    config = DataConfig(name="voc_det", root=str(tmp_path), batch_size=2)
    same(content(build_dataset(config, "train")), plain["voc_det", "train"])


# All of them


def with_files_of_macos(root):
    """`._NAME` beside every file, as macOS writes them on other disks and into archives."""
    for file in [path for path in root.rglob("*") if path.is_file()]:
        (file.parent / f"._{file.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02")


def xml_in_capitals(root):
    side_by_side(root)
    for file in [*root.rglob("*.xml")]:
        file.rename(file.with_suffix(".XML"))


@pytest.mark.parametrize(
    ("name", "make", "layout"),
    [
        ("coco", coco, loose),
        ("coco", coco, roboflow),
        ("yolo", yolo, lambda root: (root / "data.yaml").rename(root / "shapes.yaml")),
        ("voc_det", voc, with_endings),
        ("voc_det", voc, side_by_side),
        ("voc_det", voc, xml_in_capitals),
    ],
)
def test_hidden_files_are_no_annotations(tmp_path, plain, name, make, layout):
    make(tmp_path)
    layout(tmp_path)
    with_files_of_macos(tmp_path)
    for part in PARTS:
        same(content(read(tmp_path, name, part)), plain[name, part])


@pytest.mark.parametrize(("name", "make"), [("coco", coco), ("yolo", yolo), ("voc_det", voc)])
def test_photographs_that_exif_turns(tmp_path, plain, name, make):
    """The files are stored a quarter turn to the left of what was annotated."""
    make(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in tmp_path.rglob("*.png"):
        with Image.open(file) as image:
            turned = image.rotate(90)
        turned.save(file, exif=exif)
    for part, (count, _) in PARTS.items():
        with pytest.raises(ValueError) as error:
            read(tmp_path, name, part)
        assert str(error.value).startswith(f"{count} of {count} images are turned by EXIF (the first: ")
        assert str(error.value).endswith(
            ", orientation 6), and their annotations may be of the stored or of the upright pixels;"
            " data.options.orientation=upright or =stored says which."
        )
        same(content(read(tmp_path, name, part, orientation="upright")), plain[name, part])
        stored = content(read(tmp_path, name, part, orientation="stored"))
        for (image, boxes, *_), (_, given, *_) in zip(stored, plain[name, part], strict=True):
            assert image.shape == (3, SIDE, SIDE)
            x1, y1, x2, y2 = given.T
            expected = torch.stack((SIDE - y2, x1, SIDE - y1, x2), dim=1)
            torch.testing.assert_close(boxes, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "make"), [("coco", coco), ("voc_det", voc)])
def test_images_that_are_not_there_are_said_before_anything_runs(tmp_path, name, make):
    make(tmp_path)
    images = sorted(tmp_path.rglob("*.png"))
    images[0].unlink()
    with pytest.raises(
        ValueError, match=r"^1 of the 6 images that .* lists are not in .*; the first: "
    ) as error:
        read(tmp_path, name)
    assert str(error.value).endswith("data.options.missing=skip leaves them out.")
    dataset = read(tmp_path, name, missing="skip")
    assert len(dataset) == 5
    assert any(line.startswith("1 images that are not in ") for line in dataset.info.problems)


@pytest.mark.parametrize(("name", "make"), [("coco", coco), ("voc_det", voc)])
def test_images_that_were_resized_are_said_before_anything_runs(tmp_path, name, make):
    make(tmp_path)
    for file in tmp_path.rglob("*.png"):
        with Image.open(file) as image:
            smaller = image.resize((48, 64))
        smaller.save(file)
    with pytest.raises(ValueError) as error:
        read(tmp_path, name)
    assert str(error.value).startswith("Cannot read image '")
    assert str(error.value).endswith(
        ": it has 48 x 64 pixels; its annotations are for 96 x 96; the same holds for all 6 that were read first."
    )
    make(tmp_path / "other")
    first = min((tmp_path / "other").rglob("*.png"))
    smaller.save(first)
    part = "train" if "train" in str(first) or name == "voc_det" else "val"
    lines = read(tmp_path / "other", name, part).info.problems
    assert lines == (
        "1 images of another size than their annotations are for, of those read first; the first: "
        + first.name,
    )


def test_a_validation_part_without_objects_is_said(tmp_path, caplog):
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    dataset = read(tmp_path, "coco", "val")
    assert caplog.messages == [
        f"{tmp_path / 'val2017'}: none of the 3 images has an object: only false positives are scored."
    ]
    assert dataset.info.counts.tolist() == [0, 0]
