"""Maps of every frame: GIFs, folders and videos in, GIFs, folders and videos out."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from tetravit.explainers.parts.video import explain_video
from tetravit.models import create_model
from tetravit.structures import Preprocess


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("xcit_nano_12_p16", num_classes=2, depth=1).eval()
    made.input = Preprocess(size=64)
    return made


def frames(count=4):
    made = []
    for i in range(count):
        image = np.zeros((48, 64, 3), np.uint8)
        image[10:30, 10 * i : 10 * i + 12] = (255, 40 * i, 90)
        made.append(Image.fromarray(image))
    return made


@pytest.fixture
def clip(tmp_path):
    first, *others = frames()
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others, duration=40)
    return tmp_path / "clip.gif"


def test_a_gif_becomes_a_gif_of_its_length_and_rate(model, clip, tmp_path):
    assert explain_video(model, clip, tmp_path / "out" / "map.gif") == 4
    with Image.open(tmp_path / "out" / "map.gif") as made:
        assert made.n_frames == 4
        assert made.info["duration"] == 40
        assert made.width == 2 * 360 + 4


def test_heads_stand_beside_each_other_in_frames_of_a_folder(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, frame in enumerate(frames()):
        frame.save(folder / f"{i:03d}.png")
    assert explain_video(model, folder, tmp_path / "out", heads="each") == 4
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(1, 5)]
    with Image.open(files[0]) as made:
        assert made.width == 3 * 360 + 2 * 4  # the frame and four heads in two rows


def test_one_scale_for_the_clip_does_not_flicker(model, tmp_path, monkeypatch):
    """A frame without contrast stays dark on the scale of the clip; on its own scale its noise fills the range."""
    from tetravit.explainers.parts import video

    scales = []
    monkeypatch.setattr(video, "panels", lambda f, one, v, fixed, how: scales.append(fixed) or f_image())
    folder = tmp_path / "in"
    folder.mkdir()
    for i, frame in enumerate(frames()):
        frame.save(folder / f"{i}.png")
    explain_video(model, folder, tmp_path / "a")
    assert len(set(scales)) == 1
    assert scales[0] is not None
    scales.clear()
    explain_video(model, folder, tmp_path / "b", scale="frame")
    assert scales == [None] * 4


def f_image():
    return Image.new("RGB", (8, 8))


def test_a_clip_that_ends_early_is_said(model, clip, tmp_path, monkeypatch):
    from tetravit.explainers.parts import video

    monkeypatch.setattr(video, "count_frames", lambda file: 9)
    lines = []
    assert explain_video(model, clip, tmp_path / "out", announce=lines.append) == 4
    assert lines == [f"{clip} ends early: 4 of 9 frames can be read."]


def test_a_truncated_gif_is_read_as_far_as_it_goes(model, clip, tmp_path):
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    lines = []
    count = explain_video(model, clip, tmp_path / "out", announce=lines.append)
    assert 1 <= count < 4
    assert len(lines) == 1
    assert "ends early" in lines[0]


def test_an_mp4_goes_in_and_out(model, tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for frame in frames(5):
        writer.write(np.asarray(frame)[:, :, ::-1])
    writer.release()
    assert explain_video(model, tmp_path / "in.mp4", tmp_path / "out.mp4") == 5
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"into": "map.avi"}, "--into is a .mp4 file, a .gif file or a folder; got 'map.avi'."),
        ({"scale": "row"}, "--scale of a video is clip or frame; got 'row'."),
        ({"heads": "all"}, "--heads takes mean or each; got 'all'."),
        (
            {"method": "cross-covariance"},
            "The maps of cross-covariance have no places in the picture; a video needs some.",
        ),
    ],
)
def test_mistakes_are_one_line(model, clip, tmp_path, given, message):
    from pathlib import Path

    settings = {"into": tmp_path / "out", **given}
    settings["into"] = Path(settings["into"])
    with pytest.raises(ValueError) as error:
        explain_video(model, clip, **settings)
    assert str(error.value) == message
    assert len(list(ImageSequence.Iterator(Image.open(clip)))) == 4
