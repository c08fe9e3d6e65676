"""Folders of classes as people have them: what is plain is read, what is not is refused in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tetravit import load
from tetravit.data.files import HAS_HEIF
from tetravit.models import save

PLAN = "train finetune data.root=d SMALL --dry-run"
ALL = "image_folder: 24 training images, 12 validation images, 32 x 32 pixels"


def move_images(folder, target, ending):
    """Half of the images of a class get another ending."""
    for i, file in enumerate(sorted(folder.iterdir())):
        if i % 2:
            file.rename(target / f"IMG_{i}{ending}")


def junk(place, name):
    (place / name / "0.png").mkdir(parents=True)
    shutil.copy(next(place.rglob("*.png")), place / name / "0.png" / "thumb.jpg")


# Each case changes the folder and gives what the plan says of the data.


def plain(d):
    return ALL


def valid(d):
    (d / "val").rename(d / "valid")
    return ALL


def validation(d):
    (d / "val").rename(d / "Validation")
    return ALL


def capitals(d):
    (d / "train").rename(d / "Train")
    (d / "val").rename(d / "VAL")
    return ALL


def thumbnails(d):
    for name in ("@eaDir", "__MACOSX", "lost+found", ".thumbnails"):
        junk(d / "train" / "bar", name)
        junk(d / "train", name) if name != "lost+found" else (d / "train" / name).mkdir()
    return ALL


def folder_like_an_image(d):
    (d / "train" / "bar" / "more.png").mkdir()
    shutil.move(d / "train" / "bar" / "0.png", d / "train" / "bar" / "more.png" / "0.png")
    return ALL


def capital_endings(d):
    for file in list((d / "train").rglob("*.jpg")):
        file.rename(file.with_suffix(".JPEG"))
    return ALL


def system_files(d):
    (d / "train" / "bar" / "Thumbs.db").write_bytes(b"x")
    (d / "val" / "desktop.ini").write_text("x")
    return ALL


def deeper(d):
    (d / "train" / "disc" / "2024").mkdir()
    shutil.move(d / "train" / "disc" / "0.png", d / "train" / "disc" / "2024" / "0.png")
    return ALL


def accents(d):
    (d / "train" / "bar").rename(d / "train" / "caf\u00e9")
    (d / "val" / "bar").rename(d / "val" / "cafe\u0301")
    return ALL


def test_gray_and_palette(folder, tetravit):
    for file in (folder / "train" / "bar").glob("*.png"):
        with Image.open(file) as image:
            image.convert("P").save(file)
    for file in (folder / "train" / "disc").glob("*.png"):
        with Image.open(file) as image:
            image.convert("L").save(file)
    assert tetravit(PLAN).line("data") == ALL


@pytest.mark.parametrize(
    "change",
    [
        plain,
        valid,
        validation,
        capitals,
        thumbnails,
        folder_like_an_image,
        capital_endings,
        system_files,
        deeper,
        accents,
    ],
)
def test_what_is_plain_is_read(folder, tetravit, change):
    wanted = change(folder)
    outcome = tetravit(PLAN)
    assert (outcome.code, outcome.line("data"), outcome.line("left out")) == (0, wanted, "")


# Classes that one part lacks


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("how", ["empty", "missing"])
def test_a_class_that_a_part_lacks(folder, tetravit, part, how):
    shutil.rmtree(folder / part / "bar")
    if how == "empty":
        (folder / part / "bar").mkdir()
    outcome = tetravit(PLAN)
    assert outcome.code == 0
    words = {"train": "training", "val": "validation"}[part]
    assert outcome.line("note") == f"1 class has nothing in the {words} images: 'bar'"
    assert "3 classes" in outcome.line("model")


@pytest.mark.slow
def test_a_test_set_with_some_classes(folder, tetravit):
    assert tetravit("train finetune data.root=d SMALL --into run").code == 0
    shutil.copytree(folder / "val" / "bar", folder / "test" / "bar")
    shutil.copytree(folder / "val" / "disc", folder / "other" / "val" / "disc")
    shutil.copytree(folder / "val" / "cross", folder / "other" / "val" / "cross")
    outcome = tetravit("evaluate run --split test")
    assert outcome.code == 0
    assert "2 classes have nothing in the test images: 'cross', 'disc'." in outcome.text
    outcome = tetravit("evaluate run data.root=d/other")
    assert outcome.code == 0
    assert "1 class has nothing in the val images: 'bar'." in outcome.text
    (folder / "other" / "val" / "cross").rename(folder / "other" / "val" / "star")
    outcome = tetravit("evaluate run data.root=d/other")
    assert outcome.code == 2
    assert "1 of the 2 classes of the data set are not among the 3 of the model: 'star'" in outcome.text


# Parts that lie elsewhere, or nowhere


def test_parts_by_name(folder, tetravit):
    (folder / "val").rename(folder / "holdout")
    outcome = tetravit(PLAN)
    assert outcome.code == 2
    assert "There is no folder 'val' in" in outcome.text
    assert "which has 'holdout', 'train'" in outcome.text
    assert "data.val=FOLDER" in outcome.text
    assert tetravit(f"{PLAN} data.val=holdout").line("data") == ALL
    assert tetravit(f"{PLAN} data.val=[holdout]").code == 2  # TOML wants quotes; text is a path
    assert tetravit(f"""{PLAN} 'data.val=["holdout"]'""").line("data") == ALL


def test_one_folder_is_divided(folder, tetravit):
    outcome = tetravit("train finetune data.root=d/train data.split=0.25 SMALL --dry-run")
    assert outcome.line("data") == "image_folder: 18 training images, 6 validation images, 32 x 32 pixels"


# Files that cannot be read


@pytest.mark.parametrize("ending", [".CR2", ".mp4", *(() if HAS_HEIF else (".HEIC", ".heif"))])
def test_files_that_cannot_be_read_are_counted(folder, tetravit, ending):
    move_images(folder / "train" / "bar", folder / "train" / "bar", ending)
    outcome = tetravit(PLAN)
    assert outcome.code == 0
    assert outcome.line("left out").startswith(
        f"4 files left out: {ending.lower()} cannot be read; convert them to .jpg or .png; the first: "
    )


def test_a_class_of_such_files_is_refused(folder, tetravit):
    for file in (folder / "train" / "bar").iterdir():
        file.rename(file.with_suffix(".heic"))
    outcome = tetravit(PLAN)
    assert outcome.code == 2
    assert "train/bar' holds no image: 8 files left out: .heic cannot be read; convert them" in outcome.text
    assert not os.path.exists("runs")


# Paths as they are written


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2024", "007", "1e5", "true", "1979-05-27", "a b", "d=e"])
def test_folders_of_any_name(folder, tetravit, name):
    folder.rename(folder.parent / name)
    outcome = tetravit(PLAN.replace("data.root=d", f"'data.root={name}'"))
    assert outcome.line("data") == ALL


def test_a_home_folder(folder, tetravit, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert tetravit(PLAN.replace("data.root=d", "data.root=~/d")).line("data") == ALL


@pytest.mark.slow
def test_a_run_goes_on_from_another_folder(folder, tetravit, monkeypatch, tmp_path):
    assert tetravit("train finetune data.root=d SMALL --into run").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tetravit(f"evaluate {tmp_path / 'run'}").code == 0
    assert tetravit(f"train --resume {tmp_path / 'run'}").code == 0


# Sizes, channels, colours


@pytest.mark.slow
def test_rectangles_and_gray(folder, tetravit):
    run = "train finetune data.root=d SMALL 'data.image_size=[32,64]' 'model.options={depth=1,in_chans=1}'"
    assert tetravit(f"{run} --into run").code == 0
    image = folder / "val" / "bar" / "0.png"
    assert tetravit("evaluate run").code == 0
    assert tetravit(f"predict run/best.safetensors {image}").code == 0
    assert os.path.exists("run/report.html")


@pytest.mark.slow
def test_one_normalization_for_all(folder, tetravit):
    shutil.rmtree(folder / "val")
    shutil.copytree(folder / "train", folder / "val")
    colours = "normalize((0.0,0.0,0.0),(1.0,1.0,1.0))"
    run = f"train finetune data.root=d SMALL optim.ema=0 'data.augment=resize | {colours}'"
    assert tetravit(f"{run} --into run").code == 0
    from tetravit import load

    model = load("run")
    assert (model.input.mean, model.input.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    outcome = tetravit(f"{run} 'data.mean=[0.5]' --dry-run")
    assert outcome.code == 2
    assert "normalize in data.augment says mean [0.0, 0.0, 0.0], data.mean [0.5, 0.5, 0.5]" in outcome.text


def test_a_set_smaller_than_a_batch(folder, tetravit):
    outcome = tetravit("train finetune data.root=d SMALL data.batch_size=32 --dry-run")
    assert outcome.line("batch").startswith("24 = 1 x 1 x 24")


# Tables


@pytest.mark.slow
def test_several_classes_of_an_image(folder, tetravit):
    rows = ["image,disc,bar,line"]
    for file in sorted((folder / "train").rglob("*.*")):
        kind = file.parent.name
        rows.append(
            f"{file.relative_to(folder)},{int(kind == 'disc')},{int(kind == 'bar')},{int(kind != 'disc')}"
        )
    (folder / "all.csv").write_text("\n".join(rows))
    run = (
        "train finetune SMALL data.name=image_list data.root=d data.train=all.csv data.split=0.25"
        """ 'data.options={label=["disc","bar","line"]}'"""
    )
    outcome = tetravit(f"{run} --dry-run")
    assert outcome.code == 2
    assert "Images with several classes train with task.loss=bce" in outcome.text
    assert tetravit(f"{run} task.loss=bce --into run").code == 0
    assert os.path.exists("run/report.html")
    outcome = tetravit("evaluate run --json")
    assert outcome.code == 0
    assert '"map"' in outcome.text
    page = Path("run/report.html").read_text()
    assert "Mean average precision" in page
    assert "<th>threshold</th>" in page or ">threshold<" in page
    chosen = [row["threshold"] for row in json.loads(Path("run/evaluation.json").read_text())["classes"]]
    model = load("run")
    assert model.thresholds == tuple(0.5 if t is None else t for t in chosen)
    save(model, "alone.safetensors")
    assert load("alone.safetensors").thresholds == model.thresholds
    file = str(next((folder / "train").rglob("*.png")))
    probabilities = model(model.preprocess([file])).sigmoid()[0].tolist()
    named = dict(zip(model.class_names, zip(probabilities, model.thresholds, strict=True), strict=True))
    found = model.predict(file)
    assert {g.name for g in found.guesses} == {name for name, (p, t) in named.items() if p >= t}
    model.thresholds = (1.0, 1.0, 1.0)
    assert model.predict(file).cells() == ["no class"]
