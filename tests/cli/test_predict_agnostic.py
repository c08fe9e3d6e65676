"""Suppression over classes in predictions: the option, and tiles."""

import pytest
import torch
from PIL import Image

from tetravit.models import Detector, create_detector, save
from tetravit.models.tiles import merge
from tetravit.predictors import PREDICTORS
from tetravit.structures import Detections, Preprocess

pytestmark = pytest.mark.slow  # whole runs and other processes


@pytest.mark.parametrize(("class_agnostic", "kept"), [(False, [0.9, 0.8, 0.7]), (True, [0.9, 0.7])])
def test_objects_of_tiles_suppress_those_of_other_classes_on_request(class_agnostic, kept):
    boxes = torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [40, 40, 60, 60]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]), None)
    merged = merge([((0, 0, 64, 64), found)], 64, 64, class_agnostic=class_agnostic)
    assert merged.scores.tolist() == pytest.approx(kept)


def test_detectors_take_the_option():
    assert "class_agnostic" in PREDICTORS["detect"].names
    assert "class_agnostic" not in PREDICTORS["classify"].names


def test_the_command_hands_the_option_to_the_model(tmp_path, monkeypatch, ask):
    seen = []
    detect = Detector.detect
    monkeypatch.setattr(
        Detector,
        "detect",
        lambda self, *args, **given: seen.append(given["class_agnostic"]) or detect(self, *args, **given),
    )
    model = create_detector("xcit_nano_12_p16", num_classes=2, depth=4, out_blocks=(0, 1, 2, 3))
    model.class_names = ("a", "b")
    model.input = Preprocess(size=64, longest=96, mode="fit", interpolation="bilinear")
    save(model, tmp_path / "m.safetensors")
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    for flags in ([], ["--class-agnostic"]):
        run = ask("predict", str(tmp_path / "m.safetensors"), str(tmp_path / "p.png"), *flags)
        assert run.code == 0, run.err
    assert seen == [None, True]
