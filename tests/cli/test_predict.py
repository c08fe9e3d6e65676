"""predict and evaluate: what comes out, and what is said about what cannot be read."""

import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tetravit.bulk.parts.plan import make_plan
from tetravit.data.datasets import DATASETS
from tetravit.data.decode import decode
from tetravit.draw import labelled
from tetravit.models import load
from tetravit.predictors import stream
from tetravit.predictors.parts.sources import find_images


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_files_folders_and_patterns_are_found_once(images):
    every = [images / "a.png", images / "b.png", images / "more/a.png"]
    assert find_images([images]) == every
    assert find_images([str(images / "*.png")]) == every[:2]
    assert find_images([str(images / "**/*.png")]) == every
    assert find_images([every[1], images]) == [every[1], every[0], every[2]]
    (images / "notes.dat").write_text("no image")
    assert find_images([images / "notes.dat"]) == [images / "notes.dat"]  # named, so it counts


def test_images_of_a_folder_that_cannot_be_read_are_counted(images, caplog):
    for name in ("1.CR2", "2.cr2", "notes.md"):
        (images / name).write_bytes(b"x")
    assert len(find_images([images])) == 3
    cause = "2 files left out: .cr2 cannot be read; convert them to .jpg or .png"
    said = f"{images}: {cause}; the first: {images}/1.CR2."
    assert caplog.messages == [said]
    make_plan("embed", "M", str(images), images.parent / "out")
    assert caplog.messages == [said] * 2


def test_predictions_are_the_models_answers(ask, weights, images):
    (first, *_) = answers = rows(ask("predict", weights, images, "--json", "--topk", 3).out)
    assert [row["image"] for row in answers] == [str(p) for p in find_images([images])]
    model = load(weights)
    scores = model(model.preprocess(images / "a.png")[None]).softmax(dim=1)[0]
    best = scores.topk(3)
    assert [g["index"] for g in first["top"]] == best.indices.tolist()
    assert [g["score"] for g in first["top"]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [g["class"] for g in first["top"]] == [model.class_names[i] for i in best.indices]


def test_the_weights_come_first_or_as_an_option(ask, weights, images):
    first = ask("predict", weights, images, "--json")
    assert len(first.out.splitlines()) == 3
    assert ask("predict", "--model", weights, images, "--json").out == first.out
    assert ask("predict", images, "--json", "--model", weights).out == first.out


def test_a_licence_is_asked_for_once(ask, images, tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1")
    name = "gcvit_tiny.in1k"
    for verb, arguments in (
        ("predict", ("--model", name, images)),
        ("evaluate", (name, f"data.root={tmp_path}")),
    ):
        answer = ask(verb, *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == (
            f"tetravit {verb}: {name} is licensed CC-BY-NC-SA-4.0, which forbids commercial use. "
            "Accept that once with --accept-license (in Python: accept_license=True).\n"
        )
    accepted = ask("predict", "--model", name, images, "--accept-license")
    assert "TETRAVIT_OFFLINE is set" in accepted.err
    again = ask("evaluate", name, f"data.root={tmp_path}")
    assert "TETRAVIT_OFFLINE is set" in again.err


def test_the_batch_size_changes_nothing(weights, images):
    model, files = load(weights), find_images([images])
    one, all_ = (list(stream(model, files, batch_size=n)) for n in (1, 32))
    assert [p.image for p in one] == [p.image for p in all_]
    for a, b in zip(one, all_, strict=True):
        assert [g.score for g in a.guesses] == pytest.approx([g.score for g in b.guesses], abs=1e-5)


def test_a_table_for_people(ask, weights, images):
    answer = ask("predict", weights.parent, images / "a.png", "--topk", 2)
    assert answer.code == 0
    assert str(images / "a.png") in answer.out
    assert answer.out.count(" %") == 2


def test_more_classes_than_there_are_is_all_of_them(ask, weights, images):
    (row,) = rows(ask("predict", weights, images / "a.png", "--json", "--topk", 99).out)
    assert len(row["top"]) == 10


def test_bad_images_are_named_and_counted(ask, weights, images):
    (images / "bad.jpg").write_bytes(b"<html>no</html>")
    answer = ask("predict", weights, images, "--json")
    assert answer.code == 0
    why = "it is not an image (it begins with b'<html>no</ht')"
    assert answer.err == f"tetravit predict: {images}/bad.jpg: {why}.\n1 of 4 images cannot be read.\n"
    assert {"image": f"{images}/bad.jpg", "error": why} in rows(answer.out)


def test_nothing_readable_is_exit_code_2(ask, weights, images):
    (images / "notes.dat").write_text("no image")
    answer = ask("predict", weights, images / "notes.dat")
    assert answer.code == 2
    assert answer.err.splitlines()[-1] == "tetravit predict: The image cannot be read."


def test_drawings_keep_apart_what_shares_a_name(ask, weights, images, tmp_path):
    answer = ask("predict", weights, images, "--draw", tmp_path / "drawn", "--topk", 2)
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["a-2.png", "a.png", "b.png"]
    assert answer.err == f"Drew 3 images into {tmp_path}/drawn.\n"
    with Image.open(tmp_path / "drawn" / "a.png") as picture:
        assert picture.width == 480
        assert picture.height > 480


def test_a_drawing_has_the_image_on_top(images):
    image = decode(images / "a.png")
    picture = labelled(
        image, [("zero", 0.75), ("a name that is much too long to fit into one line" * 3, 0.25)]
    )
    top = picture.crop((0, 0, 480, 480)).resize((8, 8), Image.Resampling.NEAREST)
    assert np.array_equal(np.array(top), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["W", "none.png"], "There is no image or folder 'none.png'."),
        (["W", "*.nothing"], "No image matches '*.nothing'."),
        (["W", "EMPTY"], "There are no images in the folder 'EMPTY'."),
        (["W"], "No images: tetravit predict W IMAGE..."),
        (
            ["none.safetensors", "IMAGES"],
            "No checkpoint named 'none.safetensors', and no such file or run folder.",
        ),
        (["W", "IMAGES", "--device", "gpu"], "A device is auto, cpu, cuda, cuda:N or mps; got 'gpu'."),
    ],
    ids=["image", "pattern", "empty", "no image", "weights", "device"],
)
def test_mistakes(ask, weights, images, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    places = {"W": weights, "IMAGES": images}
    answer = ask("predict", *(places.get(a, a) for a in arguments))
    text = text.replace("predict W ", f"predict {weights} ")
    assert (answer.code, answer.out, answer.err) == (2, "", f"tetravit predict: {text}\n")


def test_damaged_weights_are_named(ask, weights, images, tmp_path):
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    answer = ask("predict", tmp_path / "bad.safetensors", images)
    assert answer.code == 2
    assert "has changed since it was written (sha256)." in answer.err


def test_evaluate_scores_the_runs_own_data(ask, weights):
    (row,) = rows(ask("evaluate", weights, "--json").out)
    assert (row["data"], row["split"], row["images"], row["bad"]) == ("digits", "val", 359, 0)
    assert 0 <= row["top1"] <= row["top5"] <= 1
    (train,) = rows(ask("evaluate", weights, "--json", "--split", "train", "--batch", 7).out)
    assert train["images"] == len(DATASETS["digits"](None, "train", fraction=0.1))


def test_evaluate_agrees_with_asking_one_by_one(ask, weights):
    model, digits = load(weights), DATASETS["digits"](None, "val")
    right = 0
    for i in range(0, 359, 10):
        right += int(model(model.preprocess(digits[i].image)[None]).argmax()) == digits[i].target
    (row,) = rows(ask("evaluate", weights, "data.crop=1.0", "--json").out)
    sampled = right / 36
    assert row["top1"] == pytest.approx(sampled, abs=0.12)


def test_evaluate_prints_percent(ask, weights):
    answer = ask("evaluate", weights.parent)
    assert answer.code == 0
    assert "top1" in answer.out
    assert " %" in answer.out


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--split", "dev"], "Unknown split 'dev'. Known: test, train, val."),
        (["data.nme=digits"], "Unknown recipe key 'data.nme'. Did you mean 'data.name'?"),
        (["digits"], "evaluate takes changes of data.* and evaluate.*; got 'digits'."),
    ],
    ids=["split", "key", "override"],
)
def test_mistakes_in_evaluate(ask, weights, changes, text):
    answer = ask("evaluate", weights, *changes)
    assert (answer.code, answer.out, answer.err) == (2, "", f"tetravit evaluate: {text}\n")


def test_evaluate_refuses_data_with_other_classes(ask, weights, images, tmp_path):
    for split in ("train", "val"):
        for name in ("cat", *map(str, range(1, 10))):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            shutil.copy(images / "a.png", tmp_path / "data" / split / name)
    answer = ask(
        "evaluate", weights, "data.name=image_folder", f"data.root={tmp_path}/data", "data.options={}"
    )
    assert answer.code == 2
    assert answer.err == (
        "tetravit evaluate: 1 of the 10 classes of the data set are not among the 10 of the model: 'cat';"
        " the model has '0', '1', '2', '3', '4' and 5 more.\n"
    )


def test_a_list_and_standard_input_name_images(ask, weights, images, tmp_path, monkeypatch):
    (images / "list.txt").write_text(f"# two\na.png\n\n{images}/more/a.png\n")
    expected = [str(images / "a.png"), str(images / "more/a.png")]
    answer = ask("predict", weights, images / "list.txt", "--json")
    assert [row["image"] for row in rows(answer.out)] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(expected)))
    assert [row["image"] for row in rows(ask("predict", weights, "-", "--json").out)] == expected
    text = "a.png\r\nmore\\a.png\r\n"  # of PowerShell, by its redirection
    (images / "list.txt").write_text(text, encoding="utf-16", newline="")
    assert [
        row["image"] for row in rows(ask("predict", weights, images / "list.txt", "--json").out)
    ] == expected
    (images / "list.txt").write_text("a.png\nb.jpg\n")
    answer = ask("predict", weights, images / "list.txt")
    assert answer.err == f"tetravit predict: {images}/list.txt, line 2: there is no image 'b.jpg'.\n"


def test_every_frame_of_a_gif_is_predicted_and_drawn(ask, weights, images, tmp_path):
    frames = [Image.open(images / name).convert("RGB").resize((32, 32)) for name in ("a.png", "b.png")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:], duration=50)
    answer = ask("predict", weights, tmp_path / "two.gif", "--json", "--draw", tmp_path / "drawn")
    assert answer.code == 0, answer.err
    found = [(row["image"], row["frame"], row["time_s"]) for row in rows(answer.out)]
    assert found == [("two.gif", 0, 0.0), ("two.gif", 1, 0.05)]
    assert answer.err == f"Drew {tmp_path}/drawn/two.gif.\n"
    with Image.open(tmp_path / "drawn" / "two.gif") as drawn:
        assert drawn.n_frames == 2


def test_videos_are_read_and_written(ask, weights, tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 80 * i, np.uint8))
    writer.release()
    answer = ask("predict", weights, tmp_path / "clip.mp4", "--json", "--draw", tmp_path / "drawn")
    assert answer.code == 0, answer.err
    assert [row["frame"] for row in rows(answer.out)] == [0, 1, 2]
    assert cv2.VideoCapture(str(tmp_path / "drawn" / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    answer = ask("predict", weights, tmp_path / "bad.mp4")
    assert answer.err.splitlines()[-1] == f"tetravit predict: {tmp_path}/bad.mp4 is no readable video."


def test_a_video_without_opencv_names_the_extra(ask, weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    answer = ask("predict", weights, tmp_path / "clip.mp4")
    assert answer.err == (
        "tetravit predict: Videos and cameras need the extra video: pip install 'tetravit[video]'.\n"
    )


def test_an_image_alone_lacks_a_model(ask, images):
    answer = ask("predict", images / "a.png")
    assert answer.err == (
        f"tetravit predict: No model: tetravit predict MODEL {images}/a.png. A model is a run folder, a weights"
        " file, or NAME.TAG of `tetravit list weights`.\n"
    )


def test_optimizing_says_what_runs(ask, weights, images, monkeypatch):
    from tetravit.runtimes import BACKENDS

    monkeypatch.setattr("tetravit.runtimes.BACKENDS", {"eager": BACKENDS["eager"]})
    plain = ask("predict", weights, images / "a.png", "--json")
    answer = ask("predict", weights, images / "a.png", "--optimize", "--json")
    assert answer.code == 0
    assert re.fullmatch(r"Runs with eager, \d+ threads?\n", answer.err)
    (got,), (wanted,) = rows(answer.out), rows(plain.out)
    assert [g["index"] for g in got["top"]] == [g["index"] for g in wanted["top"]]
