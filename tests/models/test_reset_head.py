"""`reset_head` of detectors and segmenters: fresh scores for other classes, everything else as it was."""

import fnmatch

import pytest
import torch
from tests.toys import TOYS

from tetravit import load
from tetravit.heads import HEADS, heads_of
from tetravit.models import create_detector, create_segmenter, save
from tetravit.models.detector import Detector
from tetravit.structures import COCO_INPUT

NAME = "xcit_nano_12_p16"
BUILD = {"detect": create_detector, "segment": create_segmenter}
CASES = [(kind, head) for kind in BUILD for head in heads_of(kind)]


def built(kind, head, classes=5):
    torch.manual_seed(0)
    options = {"width": 32} if head != "dino_detr" else {"width": 32, "num_layers": 1, "num_queries": 8}
    try:
        return BUILD[kind](NAME, head=head, num_classes=classes, head_options=options, **TOYS[NAME])
    except ValueError:
        return BUILD[kind](NAME, head=head, num_classes=classes, **TOYS[NAME])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_the_head_has_other_classes_and_keeps_the_rest(tmp_path, kind, head):
    model = built(kind, head)
    model.class_names = tuple("abcde")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_head(2)
    assert (model.num_classes, model.head.num_classes, model.class_names) == (2, 2, ())
    fresh = [f"head.{pattern}" for pattern in HEADS[head].fresh]
    for name, value in model.state_dict().items():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in fresh):
            assert torch.equal(value, before[name]), name
    save(model, tmp_path / "two.safetensors")
    assert load(tmp_path / "two.safetensors").num_classes == 2


def test_type_mode_and_frozen_parts_stay():
    model = built("detect", "retinanet").bfloat16().eval()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    model.reset_head(3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    assert model.input == COCO_INPUT


def test_what_it_refuses():
    model = built("detect", "retinanet")
    with pytest.raises(ValueError, match=r"^num_classes of a detector is 1 or more; got 0\.$"):
        model.reset_head(0)
    with torch.device("meta"):
        unnamed = Detector(type("B", (), {"backbone": model.backbone, "pyramid": model.pyramid}), model.head)
    with pytest.raises(
        ValueError,
        match=r"^reset_head needs a detector built by name: create_detector\(NAME, num_classes=3\)\.$",
    ):
        unnamed.reset_head(3)
