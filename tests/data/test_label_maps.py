"""Sets of label maps: what they read, and what they say about files that cannot be."""

import pickle
import random
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.collate import collate
from tetravit.data.datasets import DATASETS
from tetravit.data.decode import BadImage
from tetravit.data.label_maps import Shifted, read_labels
from tetravit.data.layouts import write_shapes
from tetravit.data.palettes import VOC, ade20k, cityscapes, palette, voc_colour
from tetravit.data.parts import Parts
from tetravit.data.shapes import IGNORE, SEGMENTS, draw
from tetravit.data.upright import turned_map
from tetravit.structures import Sample


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array))
    if mode == "P":
        picture.putpalette([255, 0, 0, 0, 255, 0] + [9] * 762)
    picture.save(path)


def raises(text):
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


@pytest.fixture
def folder(tmp_path):
    """A set of two classes: four images of 5 x 4 pixels, the last of the training part somewhere deeper."""
    (tmp_path / "classes.txt").write_text("sky\n\nsea\n")
    for split, names in (("train", ("a", "b", "more/c")), ("val", ("d",))):
        for name in names:
            save(tmp_path / "images" / split / f"{name}.jpg", np.full((4, 5, 3), 90, np.uint8))
            save(tmp_path / "labels" / split / f"{name}.png", np.eye(4, 5, dtype=np.uint8))
    return tmp_path


def test_a_folder_of_ones_own(folder):
    found = DATASETS["label_folder"](folder, "train")
    assert (found.kind, found.num_classes, found.class_names) == ("segment", 2, ("sky", "sea"))
    assert [found[i].name for i in range(len(found))] == [
        "images/train/a.jpg",
        "images/train/b.jpg",
        "images/train/more/c.jpg",
    ]
    sample = pickle.loads(pickle.dumps(found))[2]
    assert sample.image.shape == (3, 4, 5)
    assert sample.target.dtype == torch.uint8
    assert torch.equal(sample.target, torch.eye(4, 5, dtype=torch.uint8))
    assert len(DATASETS["label_folder"](folder, "val")) == 1
    first = DATASETS["label_folder"](folder, "train", first=1)[0]
    assert first.target[0].tolist() == [0, 255, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_classes_that_count_from_1(dtype):
    stored = torch.tensor([[0, 1, 2, 150, 151, 254, 255]], dtype=dtype)
    assert Shifted(1)(stored).tolist() == [[255, 0, 1, 149, 150, 253, 255]]
    assert Shifted(1)(stored).dtype == dtype


@pytest.mark.parametrize("nested", ["", "ADEChallengeData2016"])
def test_drawings_in_the_layout_of_ade20k(tmp_path, nested):
    list(write_shapes(tmp_path, train=2, val=1, size=32))
    root = tmp_path / "ade20k"
    if nested:
        (tmp_path / "outer").mkdir()
        root = (tmp_path / "ade20k").rename(tmp_path / "outer" / nested).parent
    found = DATASETS["ade20k"](root, "train")
    assert found.class_names == SEGMENTS
    assert found[1].name == "images/training/ADE_train_00000002.jpg"
    for i in range(2):
        np.testing.assert_array_equal(found[i].target, draw(i, size=32).labels)
    assert (found[0].target == IGNORE).any()


def test_ade20k_has_150_classes_unless_its_list_says_otherwise(tmp_path):
    list(write_shapes(tmp_path, train=1, val=1, size=32))
    root, (released, _) = tmp_path / "ade20k", ade20k()
    file = root / "objectInfo150.txt"

    def listed(names):
        rows = [f"{i + 1}\t0.1\t1\t1\t{name}, x\n" for i, name in enumerate(names)]
        file.write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(rows))
        return DATASETS["ade20k"](root, "val").class_names

    assert listed(released) == released
    assert listed(("bed ", "desk", "house of a kind", *released[3:])) == released
    assert listed(released[:149]) == released[:149]
    own = tuple(f"my {i}" for i in range(150))
    assert listed(own) == own
    file.unlink()
    assert DATASETS["ade20k"](root, "val").class_names == released
    assert (released[0], released[7], released[149]) == ("wall", "bed", "flag")


def test_cityscapes(tmp_path):
    stem = "aachen/aachen_000000_000019"
    save(tmp_path / "leftImg8bit/train" / f"{stem}_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    ids = np.array([[7, 8, 33, 0], [29, 26, 255, 77]], np.uint8)
    save(tmp_path / "gtFine/train" / f"{stem}_gtFine_labelIds.png", ids)
    found = DATASETS["cityscapes"](tmp_path, "train")
    assert found.num_classes == 19
    assert (found.class_names[0], found.class_names[18]) == ("road", "bicycle")
    assert found[0].target.tolist() == [[0, 1, 18, 255], [255, 13, 255, 254]]
    assert found[0].name == f"leftImg8bit/train/{stem}_leftImg8bit.png"
    with raises(f"{str(tmp_path)!r} does not hold Cityscapes as released: leftImg8bit/val and gtFine/val."):
        DATASETS["cityscapes"](tmp_path, "val")


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    save(root / "JPEGImages" / "2007_000032.jpg", np.zeros((2, 3, 3), np.uint8))
    save(
        root / "SegmentationClass" / "2007_000032.png",
        np.array([[0, 1, 20], [255, 1, 1]], np.uint8),
        mode="P",
    )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n")
    found = DATASETS["voc_seg"](tmp_path, "train")
    assert found[0].target.tolist() == [[0, 1, 20], [255, 1, 1]]
    assert found.class_names == VOC
    with raises(f"{str(tmp_path)!r} does not hold VOCdevkit/VOC2007 with its segmentation as released."):
        DATASETS["voc_seg"](tmp_path, "val", year="2007")
    with raises("year is 2007 to 2012; got '1999'."):
        DATASETS["voc_seg"](tmp_path, "val", year="1999")


@pytest.mark.parametrize("name", ["ade20k", "label_folder", "cityscapes", "voc_seg"])
def test_a_set_of_files_needs_its_root(name, tmp_path):
    with raises(f"The data set {name!r} needs its root."):
        DATASETS[name](None, "train")
    with raises("split takes one of train, val, test; got 'dev'."):
        DATASETS[name](tmp_path, "dev")


# Files that cannot be

NAMED = ' data.options.label_names="{name}_mask.png" says what label maps are called.'


def test_an_image_without_its_label_map(folder):
    file = folder / "labels" / "train" / "b.png"
    file.unlink()
    with raises(f"1 of 3 images lack their label map; the first is {str(file)!r}.{NAMED}"):
        DATASETS["label_folder"](folder, "train")


def test_sets_as_released_without_their_label_maps(tmp_path):
    for name, file in (
        ("cityscapes", "gtFine/train/x/a_gtFine_labelIds.png"),
        ("voc_seg", "VOCdevkit/VOC2012/SegmentationClass/a.png"),
    ):
        in_16_bits(name, tmp_path / name)
        (tmp_path / name / file).unlink()
        with raises(
            f"1 of 1 images lack their label map; the first is {str(tmp_path / name / file)!r}.{NAMED}"
        ):
            DATASETS[name](tmp_path / name, "train")


def test_a_list_of_voc_that_is_empty(tmp_path):
    in_16_bits("voc_seg", tmp_path)
    file = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    file.write_text("")
    with raises(f"{str(file)!r} lists no images."):
        DATASETS["voc_seg"](tmp_path, "train")


def test_two_images_with_one_label_map(folder):
    a, b = (folder / "images" / "train" / f"a.{suffix}" for suffix in ("jpg", "png"))
    save(b, np.zeros((4, 5, 3), np.uint8))
    with raises(f"{str(a)!r} and {str(b)!r} share the label map 'a.png'; rename one of them, or remove it."):
        DATASETS["label_folder"](folder, "train")


def test_an_empty_folder_of_label_maps(folder):
    labels = folder / "labels" / "val"
    (labels / "d.png").unlink()
    with raises(f"There are no label maps (*.png) in {str(labels)!r}."):
        DATASETS["label_folder"](folder, "val")
    labels.rmdir()
    with raises(f"There is no folder {str(labels)!r}."):
        DATASETS["label_folder"](folder, "val")


def test_an_empty_folder_of_images(folder):
    (folder / "images" / "val" / "d.jpg").unlink()
    with raises(f"There are no images in {str(folder / 'images' / 'val')!r}."):
        DATASETS["label_folder"](folder, "val")


def test_classes_that_are_not_named(folder):
    file = folder / "classes.txt"
    file.write_text("\n")
    with raises(f"{str(file)!r} names 1 to 255 classes, one per line; got 0."):
        DATASETS["label_folder"](folder, "val")
    file.unlink()
    with raises(
        f"There is no file {str(file)!r}; it names the classes, one per line (labelmap.txt, class_dict.csv,"
        " label_colors.txt, labels.txt are read too)."
    ):
        DATASETS["label_folder"](folder, "val")
    with raises("first is the number of the first class, 0 to 254; got 255."):
        DATASETS["label_folder"](folder, "val", first=255)


def bad(folder):
    """What reading the one validation sample says."""
    with pytest.raises(BadImage) as caught:
        DATASETS["label_folder"](folder, "val")[0]
    file = folder / "labels" / "val" / "d.png"
    return str(caught.value).replace(repr(str(file)), "FILE")


def test_a_label_map_of_another_size(folder):
    save(folder / "labels" / "val" / "d.png", np.zeros((5, 4), np.uint8))
    assert bad(folder) == "Cannot read image FILE: it is 4 x 5 pixels, its image 5 x 4."


def test_label_maps_of_half_the_size_are_said_before_anything_runs(folder):
    for name in ("a", "b", "more/c"):
        save(folder / "labels" / "train" / f"{name}.png", np.eye(2, 2, dtype=np.uint8))
    file = folder / "labels" / "train" / "a.png"
    with raises(
        f"Cannot read image {str(file)!r}: it is 2 x 2 pixels, its image 5 x 4; the same holds for all 3 that were"
        " read first."
    ):
        DATASETS["label_folder"](folder, "train")


def turned(folder, orientation, height, width):
    """The one validation sample, after its image was stored with this orientation: height, width as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = folder / "images" / "val" / "d.jpg"
    Image.new("RGB", (width, height)).save(file, exif=exif)
    save(folder / "labels" / "val" / "d.png", np.eye(4, 5 if height != width else 4, dtype=np.uint8))
    with pytest.raises(ValueError) as caught:
        DATASETS["label_folder"](folder, "val")
    return str(caught.value)


@pytest.mark.parametrize(
    ("orientation", "size"), [(2, (4, 5)), (3, (4, 5)), (4, (4, 5)), (6, (4, 4)), (8, (4, 4))]
)
def test_an_image_that_is_turned_when_its_label_map_may_not_be(folder, orientation, size):
    assert turned(folder, orientation, *size) == (
        f"1 of 1 images are turned by EXIF (the first: 'images/val/d.jpg', orientation {orientation}), and their"
        " label maps may be of the stored or of the upright pixels; data.options.orientation=upright or =stored says"
        " which."
    )
    upright, stored = (
        DATASETS["label_folder"](folder, "val", orientation=option)[0].target
        for option in ("upright", "stored")
    )
    assert torch.equal(upright, torch.eye(*size, dtype=torch.uint8))
    assert torch.equal(stored, torch.from_numpy(turned_map(upright.numpy(), orientation)))


def test_a_label_map_of_the_size_of_the_turned_image_belongs_to_it(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 5)).save(folder / "images" / "val" / "d.jpg", exif=exif)
    assert DATASETS["label_folder"](folder, "val")[0].image.shape == (3, 4, 5)
    save(folder / "labels" / "val" / "d.png", np.zeros((5, 4), np.uint8))  # of the size of the stored pixels
    with pytest.raises(ValueError, match="1 of 1 images are turned by EXIF"):
        DATASETS["label_folder"](folder, "val")
    assert DATASETS["label_folder"](folder, "val", orientation="stored")[0].target.shape == (4, 5)


def test_an_image_that_is_stored_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (5, 4)).save(folder / "images" / "val" / "d.jpg", exif=exif)
    assert DATASETS["label_folder"](folder, "val")[0].image.shape == (3, 4, 5)


def test_a_label_map_in_colours(folder):
    painted = np.zeros((4, 5, 3), np.uint8)
    painted[0] = (250, 50, 83)
    save(folder / "labels" / "val" / "d.png", painted)
    assert bad(folder) == (
        "Cannot read image FILE: it holds colours (RGB); a label map has one number per pixel, that of its class,"
        " unless data.options.colours, or a line NAME R G B for each class in classes.txt, says what each colour"
        " means."
    )
    colours = {"sea": [250, 50, 83], "sky": [0, 0, 0]}
    found = DATASETS["label_folder"](folder, "val", colours=colours)[0].target
    assert found.tolist() == [[1] * 5, *[[0] * 5] * 3]
    with raises("data.options.colours lacks the class 'sky'."):
        DATASETS["label_folder"](folder, "val", colours={"sea": [250, 50, 83]})
    painted[1, 2] = (9, 9, 8)
    save(folder / "labels" / "val" / "d.png", painted)
    with pytest.raises(
        BadImage, match=r"1 of its pixels have a colour that no class has, the first \(9, 9, 8\)"
    ):
        DATASETS["label_folder"](folder, "val", colours=colours)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F", "I;16", "1"])
def test_one_number_per_pixel_in_other_modes(folder, mode):
    numbers = np.eye(4, 5, dtype=np.uint8)
    picture = Image.fromarray(numbers)
    if mode == "1":
        picture = Image.fromarray(numbers.astype(bool))
    elif mode == "I;16":
        picture = Image.fromarray(numbers.astype(np.uint16))
    else:
        picture = picture.convert(mode)
    (folder / "labels" / "val" / "d.png").unlink()
    picture.save(folder / "labels" / "val" / "d.tif")
    assert DATASETS["label_folder"](folder, "val")[0].target.tolist() == numbers.tolist()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "sky 0 0 0\nsea 250 50 83\n"),
        ("classes.txt", "0 0 0 sky\n250 50 83 sea\n"),
        ("classes.txt", "sky,0,0,0\r\nsea,250,50,83\r\n"),
        ("classes.txt", "\ufeffsky #000000\nsea #fa3253\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:0,0,0::\nsea:250,50,83::\n"),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,0\nsea,250,50,83\n"),
        ("label_colors.txt", "0 0 0\tsky\n250 50 83\t\tsea\n"),
    ],
)
def test_lists_of_classes_with_colours(folder, file, text):
    (folder / "classes.txt").unlink()
    (folder / file).write_text(text)
    painted = np.zeros((4, 5, 3), np.uint8)
    painted[0] = (250, 50, 83)
    painted[3, 4] = (224, 224, 192)  # around the objects of Pascal VOC: no class
    save(folder / "labels" / "val" / "d.png", painted)
    found = DATASETS["label_folder"](folder, "val")
    assert found.class_names == ("sky", "sea")
    assert found[0].target.tolist() == [[1] * 5, [0] * 5, [0] * 5, [0, 0, 0, 0, 255]]
    assert (
        DATASETS["label_folder"](folder, "train")[0].target.tolist() == np.eye(4, 5).tolist()
    )  # numbers stay


def test_two_classes_of_one_colour_are_refused(folder):
    (folder / "classes.txt").write_text("sky 0 0 0\nsea 0 0 0\n")
    with raises("classes.txt: 'sky' and 'sea' have one colour, (0, 0, 0)."):
        DATASETS["label_folder"](folder, "train")


def renamed(folder, pattern):
    for part in ("train", "val"):
        for file in list((folder / "labels" / part).rglob("*.png")):
            file.rename(file.with_name(pattern.format(file.stem)))


@pytest.mark.parametrize(
    "pattern", ["{}_mask.png", "mask_{}.png", "{}_labelIds.png", "{}.PNG", "{}.tif", "{}.jpg.png"]
)
def test_label_maps_may_be_called_otherwise(folder, pattern):
    renamed(folder, pattern)
    found = DATASETS["label_folder"](folder, "train")
    assert [found[i].target.tolist() for i in range(3)] == 3 * [np.eye(4, 5).tolist()]
    if not pattern.startswith("{}."):
        named = DATASETS["label_folder"](folder, "train", label_names=pattern.replace("{}", "{name}"))
        assert named.pairs == found.pairs


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("JPEGImages/{}", "SegmentationClass/{}"),
        ("{}/img", "{}/labels"),
    ],
)
def test_folders_may_be_called_otherwise(folder, images, labels):
    for part, new in (("train", "train"), ("val", "valid")):
        for old, name in (("images", images), ("labels", labels)):
            place = folder / "new" / name.format(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            (folder / old / part).rename(place)
    (folder / "classes.txt").rename(folder / "new" / "classes.txt")
    assert len(DATASETS["label_folder"](folder / "new", "train")) == 3
    assert len(DATASETS["label_folder"](folder / "new", "val")) == 1
    place = str(folder / "new" / images.format("valid"))
    parts = Parts(str(folder / "new"), test=(place,))
    assert len(DATASETS["label_folder"](folder / "new", "test", parts=parts)) == 1


def numbered(folder, *numbers):
    for part in ("train", "val"):
        for file in (folder / "labels" / part).rglob("*.png"):
            save(file, np.array(numbers, np.uint8)[np.eye(4, 5, dtype=np.uint8)])


def test_masks_of_0_and_255_are_refused(folder, caplog):
    numbered(folder, 0, 255)
    said = (
        "nly the class 'sky' occurs in {} label maps, beside 20 % of pixels of 255, which means no class; 'sea' has"
        " no pixel. data.options.values=[0,255] lists the numbers of the classes in their order"
    )
    with raises(f"O{said.format(3)}."):
        DATASETS["label_folder"](folder, "train")
    assert DATASETS["label_folder"](folder, "val").info.problems == (f"o{said.format(1)}",)
    assert caplog.messages == [f"{folder}: o{said.format(1)}."]
    cured = DATASETS["label_folder"](folder, "train", values=[0, 255])
    assert cured[0].target.tolist() == np.eye(4, 5).tolist()
    assert cured.info.problems == ()
    assert cured.info.counts.tolist() == [48, 12]


def test_classes_that_count_from_1_are_refused_with_their_cure(folder):
    numbered(folder, 1, 2)
    with raises(
        "The numbers in 3 label maps run from 1 to 2, and the classes from 0 to 1; data.options.first=1 counts them"
        " from 1."
    ):
        DATASETS["label_folder"](folder, "train")
    assert DATASETS["label_folder"](folder, "train", first=1)[0].target.tolist() == np.eye(4, 5).tolist()


@pytest.mark.parametrize(
    ("numbers", "lines"),
    [
        ((0, 0), ["only the class 'sky' occurs in 3 label maps"]),
    ],
)
def test_what_label_maps_lack_is_said(folder, numbers, lines):
    numbered(folder, *numbers)
    assert list(DATASETS["label_folder"](folder, "train").info.problems) == lines


def test_most_pixels_without_a_class_are_said(folder):
    for file in (folder / "labels" / "train").rglob("*.png"):
        save(file, np.array([[0, 1, 255, 255, 255]] * 4, np.uint8))
    assert DATASETS["label_folder"](folder, "train").info.problems == (
        "60 % of the pixels in 3 label maps are 255, which means no class",
    )


@pytest.mark.parametrize("values", [[0], [0, 0], [0, 1, 2]])
def test_values_are_one_number_per_class(folder, values):
    with raises(f"values has a number of its own for each of the 2 classes, without first; got {values!r}."):
        DATASETS["label_folder"](folder, "train", values=values)


def test_a_label_map_that_is_no_image(folder):
    file = folder / "labels" / "val" / "d.png"
    file.write_text("no image")
    assert bad(folder) == "Cannot read image FILE: it is not an image (it begins with b'no image')."
    file.write_bytes(b"")
    assert bad(folder) == "Cannot read image FILE: the file is empty."
    file.unlink()
    file.mkdir()
    with pytest.raises(BadImage) as caught:
        read_labels(file)
    assert str(caught.value) == f"Cannot read image {str(file)!r}: is a directory."


def png(width, height, *chunks):
    """A grey PNG of 8 bits with these chunks, (kind, body)."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pieces = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (header, *chunks)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def test_a_damaged_header_inside_a_label_map(folder):
    """The second part of its pixels has lost its name: no OSError for Pillow."""
    packed = zlib.compress(b"".join(b"\0" + random.Random(i).randbytes(5) for i in range(4)))
    data = png(5, 4, (b"IDAT", packed[:9]), (b"\0\0\0\0", packed[9:]), (b"IEND", b""))
    (folder / "labels" / "val" / "d.png").write_bytes(data)
    assert bad(folder) == "Cannot read image FILE: broken PNG file (chunk b'\\x00\\x00\\x00\\x00')."


def test_a_label_map_of_too_many_pixels(folder, recwarn):
    data = png(15_000, 15_000, (b"IDAT", zlib.compress(b"\0" * 99)))
    (folder / "labels" / "val" / "d.png").write_bytes(data)
    assert bad(folder) == "Cannot read image FILE: it has more than 200 million pixels."
    assert not recwarn.list


def test_a_palette_is_no_matter(tmp_path):
    save(tmp_path / "p.png", np.array([[0, 1, 7]], np.uint8), mode="P")
    assert read_labels(tmp_path / "p.png").tolist() == [[0, 1, 7]]


def test_16_bits_keep_their_numbers(tmp_path):
    save(tmp_path / "w.png", np.array([[0, 9, 300, 65535]], np.uint16))
    found = read_labels(tmp_path / "w.png")
    assert found.dtype == torch.int32
    assert found.tolist() == [[0, 9, 300, 65535]]


WIDE = np.array([[1, 7, 300], [65535, 255, 256]], np.uint16)  # stored in 16 bits


def in_16_bits(name, root):
    """A set of one image whose label map is `WIDE`."""
    image, labels = {
        "ade20k": ("images/training/a.jpg", "annotations/training/a.png"),
        "label_folder": ("images/train/a.jpg", "labels/train/a.png"),
        "cityscapes": ("leftImg8bit/train/x/a_leftImg8bit.png", "gtFine/train/x/a_gtFine_labelIds.png"),
        "voc_seg": ("VOCdevkit/VOC2012/JPEGImages/a.jpg", "VOCdevkit/VOC2012/SegmentationClass/a.png"),
    }[name]
    save(root / image, np.zeros((2, 3, 3), np.uint8))
    save(root / labels, WIDE)
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (root / "classes.txt").write_text("".join(f"{i}\n" for i in range(8)))
    return DATASETS[name](root, "train")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("ade20k", [[0, 6, 300], [65535, 255, 256]]),
        ("label_folder", WIDE.tolist()),
        ("cityscapes", [[255, 0, 254], [254, 255, 254]]),
        ("voc_seg", WIDE.tolist()),
    ],
)
def test_sets_in_16_bits(name, labels, tmp_path):
    """What no class has stays known as such: it becomes neither a class nor 255."""
    sample = in_16_bits(name, tmp_path)[0]
    assert sample.target.tolist() == labels
    eight = Sample(sample.image, torch.zeros(2, 3, dtype=torch.uint8), "b")
    assert collate([eight, sample], [0, 1]).targets[1].tolist() == labels


def test_one_pixel(tmp_path):
    (tmp_path / "classes.txt").write_text("a\n")
    save(tmp_path / "images" / "train" / "a.png", np.zeros((1, 1, 3), np.uint8))
    save(tmp_path / "labels" / "train" / "a.png", np.zeros((1, 1), np.uint8))
    sample = DATASETS["label_folder"](tmp_path, "train")[0]
    assert (sample.image.shape, sample.target.shape) == ((3, 1, 1), (1, 1))


# Colours


def test_every_class_has_a_colour_of_its_own():
    names, colours = ade20k()
    assert (len(names), len(set(names)), len(colours)) == (150, 150, 150)
    assert len(set(colours)) == 149  # roads and skyscrapers share theirs, as published
    assert palette(names) == colours
    assert palette(cityscapes()[0])[0] == (128, 64, 128)
    assert [voc_colour(i) for i in (0, 1, 2, 8, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (64, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    assert palette(VOC)[20] == (0, 64, 128)
    own = palette([str(i) for i in range(255)])
    assert len(set(own)) == 255
    assert palette(SEGMENTS)[0] == (74, 80, 92)
