"""Files of DINO-DETR in the layout of its authors: what they imply, their classes, what does not fit."""

import pytest
import torch

from tetravit.data import coco
from tetravit.models import create_detector
from tetravit.weights.layouts import dense_map

BACKBONE = {"dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": (4, 4, 4, 2)}
SHAPE = {"num_queries": 8, "width": 16, "hidden": 32, "encoder_layers": 1, "decoder_layers": 2}
UNSEEN = {"num_heads": 2, "num_points": 2}  # no shape of a tensor tells them apart


def detector(**changes):
    arguments = {"head": "dino_detr", "head_options": UNSEEN, **BACKBONE, **changes}
    return create_detector("gcvit_xxtiny", **arguments)


@pytest.fixture(scope="module", params=[91, 80])
def file(request, tmp_path_factory):
    torch.manual_seed(0)
    made = detector(num_classes=request.param, head_options={**SHAPE, **UNSEEN})
    path = tmp_path_factory.mktemp("weights") / "checkpoint0011_4scale.pth"
    torch.save({"model": dense_map("gcvit", "dino_detr").to_theirs(made.state_dict()), "epoch": 11}, path)
    return path, request.param, made


def test_sizes_and_classes_come_from_the_file(file):
    path, classes, made = file
    loaded = detector(weights=path)
    head = loaded.head
    assert (loaded.num_classes, head.num_queries, head.num_levels) == (classes, 8, 4)
    want = made.state_dict()
    part = {key: value for key, value in loaded.state_dict().items() if key.startswith("head.")}
    assert part
    assert all(torch.equal(value, want[key]) for key, value in part.items())
    names, line = {
        91: (coco.raw_names(), "classes  91, COCO's category ids 0 to 90, of which 80 are in use"),
        80: (
            coco.class_names(),
            "classes  80 of COCO; its category ids are 1 to 90 without ten (tetravit.data.coco.category_ids)",
        ),
    }[classes]
    assert loaded.class_names == names
    assert str(loaded.report).splitlines()[-1] == line


def test_other_classes_start_fresh_and_have_no_names(file):
    path, _, made = file
    loaded = detector(weights=path, num_classes=3)
    assert loaded.class_names == ()
    assert loaded.head.transformer.decoder.class_embed[0].out_features == 3
    assert torch.equal(loaded.head.transformer.tgt_embed.weight, made.head.transformer.tgt_embed.weight)
    assert not loaded.report.classes


@pytest.mark.parametrize(("name", "value"), [*((k, v + 1) for k, v in SHAPE.items()), ("num_levels", 5)])
def test_a_head_of_another_size_is_one_line(file, name, value):
    path, _, _ = file
    had = {**SHAPE, "num_levels": 4}[name]
    with pytest.raises(ValueError) as error:
        detector(weights=path, head_options={**UNSEEN, name: value})
    assert str(error.value) == (
        f"{path} holds a dino_detr with {name}={had}; got {name}={value}. Leave it out of head_options, or take"
        " other weights."
    )


def test_a_backbone_of_other_channels_is_one_line(file):
    path, _, _ = file
    with pytest.raises(ValueError) as error:
        detector(weights=path, dim=8)
    assert "\n" not in str(error.value)
    assert f"{path} does not fit (dino)" in str(error.value)
