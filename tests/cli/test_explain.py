"""`tetravit explain`: tables, pictures, files, checks, videos and messages."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.models import create_model, save


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    xcit = create_model("xcit_nano_12_p16", num_classes=3, depth=1, image_size=64)
    xcit.class_names = ("cat", "dog", "bird")
    save(xcit, folder / "xcit.safetensors")
    save(create_model("convit_tiny", num_classes=2, depth=2, num_gpsa=1), folder / "convit.safetensors")
    save(create_model("xcit_nano_12_p16", num_classes=0, depth=1), folder / "dino.safetensors")
    Image.effect_noise((80, 120), 60).convert("RGB").save(folder / "a.png")
    (folder / "bad.png").write_bytes(b"not a picture")
    frames = [Image.fromarray(np.full((40, 60, 3), 50 * i, np.uint8)) for i in range(3)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:], duration=40)
    return folder


def test_without_a_method_those_of_the_model_are_listed(ask, home):
    answer = ask("explain", home / "xcit.safetensors")
    assert answer.code == 0
    assert "class-attention" in answer.out
    assert "gates" not in answer.out
    assert "rollout (given its weights, attention between channels" in answer.err
    rows = [json.loads(line) for line in ask("explain", home / "xcit.safetensors", "--json").out.splitlines()]
    assert {row["method"] for row in rows} > {"rollout", "gradcam"}
    assert {row["method"]: row["why_not"] for row in rows}["gradcam"] is None


def test_pictures_and_maps_are_written(ask, home, tmp_path):
    answer = ask(
        *("explain", home / "xcit.safetensors", home / "a.png", "--method", "class-attention"),
        *("--draw", tmp_path, "--save-maps", tmp_path / "maps", "--json", "--head", 1),
    )
    assert answer.code == 0, answer.err
    row = json.loads(answer.out)
    assert (row["method"], row["maps"][0]["slices"]) == ("class-attention", ["head 1"])
    with Image.open(tmp_path / "a-class-attention.png") as drawn:
        assert drawn.width > 600
    assert np.load(tmp_path / "maps" / "a-class-attention.npz")["map0"].shape == (1, 4, 4)
    assert f"Drew a picture into {tmp_path}." in answer.err


def test_tables_of_weights_need_no_picture(ask, home):
    answer = ask("explain", home / "convit.safetensors", "--method", "gates")
    assert answer.code == 0
    assert "0.7311" in answer.out
    assert "blocks.0.attn" in answer.out


@pytest.mark.slow
def test_a_check_is_one_json_line_and_a_picture(ask, home, tmp_path):
    answer = ask(
        *("explain", home / "xcit.safetensors", home / "a.png", "--method", "gradcam", "--class", "dog"),
        *("--check", "--box", "5,5,60,60", "--draw", tmp_path),
    )
    row = json.loads(answer.out)
    assert row["target"] == "dog"
    assert set(row["deletion"]) == {"map", "random", "centre"}
    assert (tmp_path / "a-gradcam-check.png").is_file()


def test_a_video_is_explained(ask, home, tmp_path):
    answer = ask(
        "explain", "video", home / "xcit.safetensors", home / "clip.gif", "--into", tmp_path / "m.gif"
    )
    assert answer.code == 0, answer.err
    assert answer.err.endswith(f"Wrote 3 frames into {tmp_path / 'm.gif'}.\n")


def test_one_bad_picture_among_others_is_named(ask, home):
    answer = ask(
        "explain", home / "xcit.safetensors", home / "a.png", home / "bad.png", "--method", "gradcam"
    )
    assert answer.code == 0
    assert "bad.png" in answer.err
    assert "1 of 2 images cannot be read." in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["xcit.safetensors", "a.png", "--method", "gates"],
            "gates has no meaning for xcit_nano_12_p16: it has no gated positional attention. Methods that have:"
            " attention-gradient, class-attention, cross-covariance, temperatures, leverage, gradcam, hirescam,"
            " layercam, occlusion, scorecam.",
        ),
        (
            ["dino.safetensors", "a.png", "--method", "occlusion"],
            "occlusion has no meaning for xcit_nano_12_p16: the weights have no classes. Methods that have:"
            " class-attention, cross-covariance, temperatures, leverage.",
        ),
        (
            ["xcit.safetensors", "a.png", "--method", "gradcam", "--class", "brid"],
            "Class 'brid' does not exist. Did you mean 'bird'?",
        ),
        (
            ["xcit.safetensors", "a.png", "--method", "gradcam", "--layer", "blocks.3"],
            "Layer 'blocks.3' does not exist. Did you mean 'blocks.0'?",
        ),
        (
            ["convit.safetensors", "a.png", "--method", "gated-attention", "--query", "99,3"],
            "The query (99, 3) lies outside of the picture of 80 x 120 pixels.",
        ),
        (
            ["convit.safetensors", "a.png", "--method", "gated-attention", "--query", "9"],
            "--query takes X,Y, a pixel of the picture; got '9'.",
        ),
        (
            ["model.onnx", "a.png", "--method", "gradcam"],
            "model.onnx is an exported model: it has no gradients and forms no attention maps. Give the weights that"
            " it was exported from.",
        ),
        (
            ["xcit.safetensors", "--method", "gradcam"],
            "No images: tetravit explain xcit.safetensors IMAGE... --method gradcam.",
        ),
        (
            ["xcit.safetensors", "a.png", "--method", "gradcam", "--size", "20"],
            "--size takes a side from 32 pixels up, or own; got '20'.",
        ),
        (
            ["xcit.safetensors", "a.png", "--method", "gradcam", "--box", "1,2,3,4"],
            "--box and --mask go with --check.",
        ),
        (
            ["video", "xcit.safetensors", "--into", "m.gif"],
            "tetravit explain video WEIGHTS CLIP --into FILE: give weights and one clip.",
        ),
        (
            ["video", "xcit.safetensors", "clip.gif"],
            "--into FILE is where tetravit explain video writes; a picture has --draw DIR.",
        ),
        (
            ["video", "xcit.safetensors", "none.mp4", "--into", "m.gif"],
            "There is no video or folder 'none.mp4'.",
        ),
    ],
)
def test_mistakes_are_one_line(ask, home, monkeypatch, arguments, message):
    monkeypatch.chdir(home)
    answer = ask("explain", *arguments)
    assert answer.code == 2
    assert answer.err == f"tetravit explain: {message}\n"
    assert answer.out == ""
