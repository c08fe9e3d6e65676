"""Every case of people's data and habits that this project answers for, as a command and what it is to give.

    python tests/cases/run_cases.py            all of them, in minutes
    python tests/cases/run_cases.py backslash  those whose names hold a word

A case makes a small input, runs commands, and compares how they end and what they print. A set that is read right
gives the losses of its plain form. `test_run_cases.py` runs some of them.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.cases.conftest import SMALL, draw_folder
from tests.cases.test_objects import SIDE, coco, picture, voc, yolo

from tetravit.data.files import HAS_HEIF

DETECT = (
    "train shapes-det model.head=retinanet model.head_options.width=64 data.image_size=96 data.batch_size=2"
    " data.workers=0 data.augment=flip steps=2 run.log_steps=1 run.evaluate_steps=2"
)
SEGMENT = (
    "train shapes-seg data.name=label_folder data.batch_size=2 data.workers=0 data.augment=flip steps=2"
    " run.log_steps=1"
)
FINETUNE = f"train finetune data.root=d {SMALL}"
LOSSES = "losses of the plain form"


@dataclass(frozen=True)
class Case:
    """What is made, run and expected.

    make: writes the input into a folder. commands: of tetravit, in turn; the last one counts. code: how it ends.
    says: words that the commands print. losses: the plain input whose losses the run has; None: not compared.
    """

    make: Callable[[Path], None]
    commands: tuple[str, ...]
    code: int = 0
    says: tuple[str, ...] = ()
    losses: str | None = None


@dataclass(frozen=True)
class Result:
    code: int
    text: str


def run(command: str, folder: Path) -> Result:
    """`tetravit COMMAND` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "240"}
    done = subprocess.run(
        [sys.executable, "-m", "tetravit", *shlex.split(command)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    return Result(done.returncode, done.stdout + done.stderr)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row and "lr" in row]


def changed(change: Callable[[dict, Path, str], None]) -> Callable[[Path], None]:
    """COCO's layout, its JSON files changed by (table, root, part)."""

    def make(folder: Path) -> None:
        coco(folder / "d")
        for part in ("train", "val"):
            file = folder / "d" / "annotations" / f"instances_{part}2017.json"
            table = json.loads(file.read_text())
            change(table, folder / "d", part)
            file.write_text(json.dumps(table))

    return make


def rows(kind: str, **values: Callable[[dict], object]) -> Callable[[Path], None]:
    """COCO's layout with changed rows."""

    def change(table: dict, root: Path, part: str) -> None:
        for row in table[kind]:
            for key, value in values.items():
                row[key] = value(row)

    return changed(change)


def backslashes(table: dict, root: Path, part: str) -> None:
    for row in table["images"]:
        row["file_name"] = "images\\" + row["file_name"]
    folder = root / f"{part}2017"
    (folder / "images").mkdir()
    for file in [*folder.glob("*.png")]:
        file.rename(folder / "images" / file.name)


def no_sizes(table: dict, root: Path, part: str) -> None:
    for row in table["images"]:
        del row["width"], row["height"]


def other_order(table: dict, root: Path, part: str) -> None:
    if part == "val":
        table["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
        for row in table["annotations"]:
            row["category_id"] = 3 - row["category_id"]


def without_objects(part: str) -> Callable[[Path], None]:
    return changed(lambda table, root, p: table["annotations"].clear() if p == part else None)


def text_ids(table: dict, root: Path, part: str) -> None:
    for row in table["images"]:
        row["id"] = f"img_{row['id']}"
    for row in table["annotations"]:
        row["image_id"] = f"img_{row['image_id']}"


def turned(folder: Path) -> None:
    coco(folder / "d")
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (folder / "d").rglob("*.png"):
        with Image.open(file) as image:
            image.save(file, exif=exif)


def roboflow(folder: Path) -> None:
    coco(folder / "d")
    for part, name in (("train", "train"), ("val", "valid")):
        source, target = folder / "d" / f"{part}2017", folder / "d" / name
        source.rename(target)
        table = json.loads((folder / "d" / "annotations" / f"instances_{part}2017.json").read_text())
        group = {"id": 0, "name": "shapes", "supercategory": "none"}
        table["categories"] = [group, *({**row, "supercategory": "shapes"} for row in table["categories"])]
        (target / "_annotations.coco.json").write_text(json.dumps(table))
    shutil.rmtree(folder / "d" / "annotations")


def roboflow_yolo(folder: Path) -> None:
    yolo(folder / "d", yaml="train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['red', 'blue']\n")
    for part, name in (("train", "train"), ("val", "valid")):
        (folder / "d" / name).mkdir()
        for kind in ("images", "labels"):
            (folder / "d" / kind / part).rename(folder / "d" / name / kind)
    for kind in ("images", "labels"):
        (folder / "d" / kind).rmdir()


def in_d(make: Callable[..., None], **options: object) -> Callable[[Path], None]:
    return lambda folder: make(folder / "d", **options)


def polygons(folder: Path) -> None:
    """One image in four is outlined, the others have boxes."""
    yolo(folder / "d")
    for i, file in enumerate(sorted((folder / "d" / "labels").rglob("*.txt"))):
        if i % 4 == 0:
            lines = []
            for line in file.read_text().splitlines():
                label, x, y, w, h = (float(v) for v in line.split())
                corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
                points = [v for sx, sy in corners for v in (x + sx * w / 2, y + sy * h / 2)]
                lines.append(" ".join([str(int(label)), *(f"{v:.6f}" for v in points)]))
            file.write_text("\n".join(lines))


def with_marks(folder: Path) -> None:
    yolo(folder / "d")
    mark = b"\xef\xbb\xbf"
    for file in (folder / "d" / "labels").rglob("*.txt"):
        file.write_bytes(mark + file.read_bytes().replace(b"\n", b"\r\n"))
    (folder / "d" / "classes.txt").write_bytes(mark + b"red\r\nblue\r\n")


def masks(
    folder: Path,
    paint: Callable[[np.ndarray], Image.Image],
    classes: str = "background\nred\nblue\n",
    mask: str = "{}.png",
) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "classes.txt").write_text(classes)
    for part, count, first in (("train", 8, 0), ("val", 4, 1000)):
        for kind in ("images", "labels"):
            (folder / "d" / kind / part).mkdir(parents=True)
        for i in range(count):
            image, boxes = picture(first + i)
            labels = np.zeros((SIDE, SIDE), np.uint8)
            for k, x, y, w, h in boxes:
                labels[y : y + h, x : x + w] = k + 1
            image.save(folder / "d" / "images" / part / f"{i}.jpg")
            paint(labels).save(folder / "d" / "labels" / part / mask.format(i))


def colours(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array([[0, 0, 0], [250, 50, 83], [36, 179, 83]], np.uint8)[labels])


def dense(folder: Path) -> None:
    """150 objects in every image of 480 x 320 pixels."""
    for part in ("train", "val"):
        (folder / "d" / f"{part}2017").mkdir(parents=True)
        Image.new("RGB", (480, 320), "white").save(folder / "d" / f"{part}2017" / "0.png")
        (folder / "d" / "annotations").mkdir(exist_ok=True)
        boxes = [[k % 15 * 32 + 4, k // 15 * 32 + 4, 20, 20] for k in range(150)]
        table = {
            "images": [{"id": i, "file_name": "0.png", "width": 480, "height": 320} for i in range(1)],
            "annotations": [
                {"id": k, "image_id": 0, "category_id": 1, "bbox": box} for k, box in enumerate(boxes)
            ],
            "categories": [{"id": 1, "name": "dot"}],
        }
        (folder / "d" / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(table))


def cameras(folder: Path) -> None:
    """Two cameras that both count their pictures, and a set to train on."""
    coco(folder / "d")
    for seed, name in enumerate(("cam1", "cam2")):
        (folder / "p" / name).mkdir(parents=True)
        picture(seed)[0].save(folder / "p" / name / "0001.png")


def folders(
    folder: Path, then: Callable[[Path], object] = lambda root: None, parts: dict[str, int] | None = None
) -> None:
    """Folders of images per class, and a change of them."""
    draw_folder(folder / "d", parts or {"train": 8, "val": 4})
    then(folder / "d")


def thumbnails(root: Path) -> None:
    (root / "train" / "bar" / "@eaDir" / "0.png").mkdir(parents=True)
    source = root / "train" / "disc" / "1.jpg"
    shutil.copy(source, root / "train" / "bar" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_XL.jpg")


def heic(root: Path, count: int) -> None:
    for i, file in enumerate(sorted((root / "train" / "bar").iterdir())[:count]):
        file.rename(file.with_name(f"IMG_{i}.HEIC"))


def latin1(root: Path) -> None:
    for part in ("train", "val"):
        os.rename(os.fsencode(root / part / "bar"), os.fsencode(root / part) + b"/ni\xf1o")


PLAIN: dict[str, Case] = {
    "coco": Case(in_d(coco), (f"{DETECT} data.name=coco data.root=d --into run",)),
    "yolo": Case(in_d(yolo), (f"{DETECT} data.name=yolo data.root=d --into run",)),
    "voc": Case(
        in_d(voc),
        (f'{DETECT} data.name=voc_det data.root=d \'data.options.classes=["red","blue"]\' --into run',),
    ),
    "masks": Case(partial(masks, paint=Image.fromarray), (f"{SEGMENT} data.root=d --into run",)),
}
COCO, YOLO, VOC, MASKS = (PLAIN[name].commands[0] for name in ("coco", "yolo", "voc", "masks"))
ROBOFLOW = " 'data.options.annotations={split}/_annotations.coco.json' 'data.options.images={split}'"


def as_coco(change: Callable[[Path], None], more: str = "") -> Case:
    return Case(change, (COCO + more,), losses="coco")


CASES: dict[str, Case] = {
    "coco of Roboflow": as_coco(roboflow, ROBOFLOW),
    "coco flat polygon": as_coco(rows("annotations", segmentation=lambda row: row["segmentation"][0])),
    "coco area zero": as_coco(rows("annotations", area=lambda row: 0, segmentation=lambda row: [])),
    "coco categories in another order": as_coco(changed(other_order)),
    "coco backslashes": as_coco(changed(backslashes)),
    "coco turned photographs": Case(
        turned, (COCO,), 2, ("orientation 6", "data.options.orientation=upright")
    ),
    "coco ids of images as text": as_coco(rows("annotations", image_id=lambda row: str(row["image_id"]))),
    "coco ids that are names": as_coco(changed(text_ids)),
    "coco without sizes": as_coco(changed(no_sizes)),
    "coco repeated ids": as_coco(rows("annotations", id=lambda row: row["id"] % 2)),
    "coco validation without objects": Case(
        without_objects("val"),
        (COCO, "evaluate run"),
        0,
        ("none of the 3 images has an object", "false_alarms"),
    ),
    "coco shares as boxes": Case(
        rows("annotations", bbox=lambda row: [v / SIDE for v in row["bbox"]]),
        (COCO,),
        2,
        ("boxes whose four numbers lie in 0..1", "multiply shares"),
    ),
    "coco no masks for a head with masks": Case(
        rows("annotations", segmentation=lambda row: []),
        ("train shapes-det data.name=coco data.root=d --into run",),
        2,
        ("model.head=retinanet",),
    ),
    "coco train without objects": Case(
        without_objects("train"),
        (f"{COCO} data.options.empty=keep".replace("model.head=retinanet", ""),),
    ),
    "coco 150 objects": Case(
        dense, (COCO,), 0, ("images to score on have up to 150 objects", "evaluate.max_detections=150")
    ),
    "coco one number for two results": Case(
        cameras, (COCO, "predict run p --results r.json"), 0, ("counted from 1, because",)
    ),
    "coco evaluate with the model's options": Case(
        in_d(coco),
        (COCO, "evaluate run model.head_options.score_threshold=0.99"),
        2,
        ("evaluate takes changes of data.* and evaluate.*",),
    ),
    "yolo of Roboflow": Case(roboflow_yolo, (YOLO,), losses="yolo"),
    "yolo keypoints": Case(
        in_d(yolo, line=lambda v: " ".join([*v, *v[1:3]]), yaml="kpt_shape: [1, 2]\nnames: [red, blue]\n"),
        (YOLO,),
        losses="yolo",
    ),
    "yolo commas": Case(in_d(yolo, line=",".join), (YOLO,), losses="yolo"),
    "yolo boxes and polygons": Case(polygons, (YOLO,), 0, ("6 training images",)),
    "yolo byte order marks": Case(with_marks, (YOLO,), losses="yolo"),
    "yolo in groups of two": Case(in_d(yolo), (f"{YOLO} data.group=2",)),
    "yolo names of YAML": Case(
        in_d(yolo, yaml="nc: 2\nnames: ['red [matt]', 'blue']\n"), (YOLO,), losses="yolo"
    ),
    "voc spaces": Case(in_d(voc, stem="IMG {:04} (1)"), (VOC,), losses="voc"),
    "voc sizes of 0": Case(in_d(voc, size=0), (VOC,), losses="voc"),
    "voc names without ending": Case(in_d(voc, filename="{}"), (VOC,), losses="voc"),
    "voc own classes": Case(
        in_d(voc),
        (VOC.replace('\'data.options.classes=["red","blue"]\'', ""),),
        2,
        ("12 objects of unknown classes (red, blue)", "data.options.classes names your own"),
    ),
    "masks of 0 and 255": Case(
        partial(
            masks, paint=lambda m: Image.fromarray(((m > 0) * 255).astype("uint8")), classes="a\nshape\n"
        ),
        (MASKS,),
        2,
        ("which means no class", "data.options.values=[0,255]"),
    ),
    "masks of 0, 100 and 200": Case(
        partial(masks, paint=lambda m: Image.fromarray(m * 100)),
        (MASKS,),
        2,
        ("data.options.values=[0,100,200]",),
    ),
    "masks of three equal channels": Case(
        partial(masks, paint=lambda m: Image.fromarray(np.stack([m] * 3, 2))), (MASKS,), losses="masks"
    ),
    "masks of colours": Case(partial(masks, paint=colours), (MASKS,), 2, ("data.options.colours",)),
    "masks with a suffix": Case(
        partial(masks, paint=Image.fromarray, mask="{}_mask.png"), (MASKS,), losses="masks"
    ),
    "class missing in val": Case(
        partial(folders, then=lambda root: shutil.rmtree(root / "val" / "bar")),
        (f"{FINETUNE} --into run",),
        0,
        ("1 class has nothing in the validation images: 'bar'",),
    ),
    "folder called valid": Case(
        partial(folders, parts={"train": 8, "valid": 4, "test": 4}),
        (f"{FINETUNE} --into run", "evaluate run --split test"),
        0,
        ("12 validation images", " test "),
    ),
    "folder named like an image": Case(
        partial(folders, then=thumbnails), (f"{FINETUNE} --into run",), 0, ("24 training images",)
    ),
    "some HEIC": Case(
        partial(folders, then=partial(heic, count=6)), (f"{FINETUNE} --into run",), 0, ("left out", ".heic")
    ),
    "all HEIC": Case(
        partial(folders, then=partial(heic, count=8)), (f"{FINETUNE} --into run",), 2, (".heic",)
    ),
    "class in Latin-1": Case(
        partial(folders, then=latin1), (f"{FINETUNE} --into run",), 0, ("Report: run/report.html",)
    ),
    "gray": Case(
        folders, (FINETUNE.replace("{depth=1}", "{depth=1,in_chans=1}") + " --into run",), 0, ("Report:",)
    ),
    "rectangles": Case(
        folders, (f"{FINETUNE} 'data.image_size=[32,64]' --into run",), 0, ("32 x 64 pixels",)
    ),
    "numeric folder": Case(
        lambda folder: draw_folder(folder / "2024", {"train": 8, "val": 4}),
        (FINETUNE.replace("data.root=d", "data.root=2024") + " --into run",),
    ),
    "per-class scores": Case(
        folders, (f"{FINETUNE} --into run", "evaluate run --per-class"), 0, ("recall", "precision")
    ),
    "more epochs": Case(
        folders,
        (f"{FINETUNE} --into run", "train --resume run epochs=2"),
        2,
        ("tetravit train run/recipe.toml epochs=2 model.weights=run/last.safetensors",),
    ),
    "first steps": Case(
        folders,
        (
            "train finetune data.root=d model.name=xcit_nano_12_p16 data.workers=0 data.image_size=64 --dry-run"
            " steps=10",
        ),
        0,
        ("warm-up of 1 steps of 10", "batch of 24 in place of 32", "starts from random weights"),
    ),
}


if HAS_HEIF:  # pillow-heif reads them
    del CASES["some HEIC"], CASES["all HEIC"]


def check(name: str, case: Case, folder: Path, run: Callable[[str, Path], Result] = run) -> str:
    """What is wrong with a case; empty: nothing."""
    case.make(folder)
    text, code = "", 0
    for command in case.commands:
        result = run(command, folder)
        text, code = text + result.text, result.code
    if "Traceback" in text:
        return f"a traceback: {text.strip().splitlines()[-1]}"
    if code != case.code:
        return f"exit {code}: {text.strip().splitlines()[-1] if text.strip() else 'nothing printed'}"
    if case.code and (folder / "run").exists() and len(case.commands) == 1:
        return "a run folder was written"
    lacking = [word for word in case.says if word not in text]
    if lacking:
        return f"does not say {lacking[0]!r}"
    if case.losses is None:
        return ""
    with tempfile.TemporaryDirectory() as other:
        plain = PLAIN[case.losses]
        plain.make(Path(other))
        run(plain.commands[0], Path(other))
        want = losses(Path(other))
    got = losses(folder)
    return "" if got == want and got else f"losses {got}, those of the plain form are {want}"


def expected(case: Case) -> str:
    words = [f"exit {case.code}", *case.says]
    return ", ".join([*words, LOSSES] if case.losses else words)


def main(word: str = "") -> int:
    """Run the cases whose names hold `word`; print a table; the number of those that are wrong."""
    wrong = 0
    for name, case in CASES.items():
        if word not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            fault = check(name, case, Path(folder))
        wrong += bool(fault)
        print(f"{'WRONG' if fault else 'right':6}{name:42}{expected(case)}", flush=True)
        if fault:
            print(f"      got: {fault}", flush=True)
    print(f"{wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:2])))
