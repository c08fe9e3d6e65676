"""`tetravit.explain`: records, places, messages."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import tetravit
from tetravit.explainers import EXPLAIN
from tetravit.models import create_model


def model(name="xcit_nano_12_p16", classes=5, **options):
    torch.manual_seed(0)
    return create_model(name, num_classes=classes, **options).eval()


@pytest.fixture(scope="module")
def small():
    return model(depth=2)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8))


@pytest.mark.slow
def test_the_function_and_its_package_are_both_reachable():
    code = (
        "import tetravit, tetravit.explainers.base; from tetravit.explainers import explain;"
        "assert callable(tetravit.explain); import tetravit.explainers.parts.attention;"
        "assert callable(tetravit.explain)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_declarations_load_no_torch():
    code = "import sys, tetravit.explainers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_record_says_what_and_where(small, picture):
    found = tetravit.explain(small, picture, "class-attention")
    (one,) = found.maps
    assert (one.layer, one.grid, one.stride, one.centre) == ("class_blocks.1.attn", (14, 14), 16, 0.0)
    assert one.slices == tuple(f"head {i}" for i in range(4))
    torch.testing.assert_close(one.values.sum(dim=(1, 2)), one.seen)
    row = found.to_dict()
    assert row["view"]["picture"] == [120, 200]
    assert row["maps"][0]["seen"] == one.seen.tolist()
    renormalised = tetravit.explain(small, picture, "class-attention", renormalise=True).maps[0]
    torch.testing.assert_close(renormalised.values.sum(dim=(1, 2)), torch.ones(4))


def test_heads_and_layers_are_chosen(small, picture):
    both = tetravit.explain(small, picture, "class-attention", layer="all")
    assert [one.layer for one in both.maps] == ["class_blocks.0.attn", "class_blocks.1.attn"]
    first = tetravit.explain(small, picture, "class-attention", layer="class_blocks.0", head=2)
    assert first.maps[0].slices == ("head 2",)
    assert torch.equal(first.maps[0].values[0], both.maps[0].values[2])
    assert tetravit.explain(small, picture, "class-attention", layer=0).maps[0].layer == both.maps[0].layer


def test_files_hold_the_raw_values(small, picture, tmp_path):
    found = tetravit.explain(small, picture, "class-attention")
    file = found.save(tmp_path, "mine")
    assert np.array_equal(np.load(file)["map0"], found.maps[0].values.numpy())
    assert (tmp_path / "mine.json").read_text().count("\n") == 1


def test_names_are_found_whatever_their_case(small, picture):
    assert tetravit.explain(small, picture, "Grad-CAM").method == "gradcam"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "clas-attention"}, "Unknown method 'clas-attention'. Did you mean 'class-attention'?"),
        (
            {"method": "class-attention", "layer": "class_blocks.7"},
            "Layer 'class_blocks.7' does not exist. Did you mean 'class_blocks.1.attn'?",
        ),
        ({"method": "class-attention", "layer": 2}, "Layer 2 does not exist: layers are 0 to 1."),
        (
            {"method": "class-attention", "head": 4},
            "class_blocks.1.attn has heads 0 to 3; got head 4.",
        ),
        ({"method": "gradcam", "class_": 5}, "Class 5 does not exist: classes are 0 to 4."),
        (
            {"method": "gradcam", "class_": "cat"},
            "The classes of this model have no names; give a number below 5.",
        ),
        (
            {"method": "class-attention", "query": (3, 4)},
            "class-attention takes no query; it takes layer, head, renormalise.",
        ),
        (
            {"method": "class-attention", "colour": "red"},
            "class-attention takes no colour; it takes layer, head, renormalise.",
        ),
    ],
)
def test_mistakes_are_one_line(small, picture, changes, message):
    with pytest.raises(ValueError) as error:
        tetravit.explain(small, picture, **changes)
    assert str(error.value) == message


def test_weights_without_classes_have_attention_alone(picture):
    with pytest.raises(ValueError) as error:
        tetravit.explain(model(classes=0, depth=1), picture, "gradcam")
    able = ", ".join(name for name, row in EXPLAIN.items() if not row.refusal(model(classes=0, depth=1)))
    assert str(error.value) == (
        "gradcam has no meaning for xcit_nano_12_p16: the weights have no classes."
        f" Methods that have: {able}."
    )
