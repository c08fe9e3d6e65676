"""Full checkpoints of DINO runs go in and out: the authors' layout, VISSL's, and what is no such file."""

import argparse

import pytest
import torch
from torch import nn

from tetravit.data.datasets.base import DatasetInfo
from tetravit.models import create_model
from tetravit.tasks.dino import Dino, DinoConfig
from tetravit.weights.fileformat import BadFile
from tetravit.weights.selfsup import from_vissl, network, read_full, write_full
from tetravit.weights.xcit import LAYOUTS

NAMES = LAYOUTS["xcit"]["official"]
OPTIONS = {"depth": 1, "dim": 32}


def task(**changes):
    torch.manual_seed(1)
    model = create_model("xcit_nano_12_p8", num_classes=0, **OPTIONS)
    config = DinoConfig(**{"prototypes": 6, "hidden": 8, "bottleneck": 4, **changes})
    made = Dino(model, config, DatasetInfo("unlabelled", 0, ()))
    with torch.no_grad():
        for p in made.teacher.parameters():
            p.add_(1.0)
        made.center.normal_()
    return made


@pytest.fixture
def full(tmp_path):
    made, path = task(), tmp_path / "checkpoint.pth"
    write_full(path, made.state_dict(), NAMES, epoch=7)
    return made, path


def test_the_file_is_the_authors(full):
    made, path = full
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"student", "teacher", "dino_loss", "epoch"}
    assert all(k.startswith(("module.backbone.", "module.head.")) for k in saved["teacher"])
    assert "module.backbone.cls_attn_blocks.0.attn.qkv.weight" in saved["student"]
    read = read_full(path)
    assert read.epoch == 7
    assert torch.equal(read.center, made.center)
    assert set(read.teacher.head) == set(made.teacher_head.state_dict())


@pytest.mark.parametrize("which", ["teacher", "student", None])
def test_either_network_is_a_model(full, which):
    made, path = full
    model = create_model("xcit_nano_12_p8", weights=path, which=which, **OPTIONS)
    wanted = made.model if which == "student" else made.teacher
    assert model.num_classes == 0
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), atol=0, rtol=0)
    assert any("head.last_layer.weight_v (projection head)" in text for text in model.report.dropped)


def test_a_run_continues_from_it(full):
    made, path = full
    again = task()
    nn.init.zeros_(again.center)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.continue_from(path)
    torch.testing.assert_close(again.state_dict(), made.state_dict(), atol=0, rtol=0)


def test_arguments_of_the_run_are_not_executed(full):
    _, path = full
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "args": argparse.Namespace(arch="xcit"), "optimizer": {"state": {}}}, path)
    assert create_model("xcit_nano_12_p8", weights=path, **OPTIONS).num_classes == 0


def test_newer_names_of_a_weight_norm():
    state = {
        "module.head.last_layer.parametrizations.weight.original0": torch.zeros(6, 1),
        "module.head.last_layer.parametrizations.weight.original1": torch.zeros(6, 4),
        "module.backbone.module.backbone.x": torch.zeros(1),
    }
    parts = network(state)
    assert set(parts.head) == {"last_layer.weight_g", "last_layer.weight_v"}
    assert set(parts.backbone) == {"module.backbone.x"}  # prefixes go at the beginning alone


def test_vissl(full, tmp_path):
    made, path = full
    saved = torch.load(path, weights_only=True)

    def theirs(state, start):
        out = {}
        for key, value in state.items():
            name = key.removeprefix("module.")
            head = name.replace("head.last_layer", "heads.0.prototypes0").replace("head.mlp", "heads.0.mlp")
            out[
                start + (f"trunk.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else head)
            ] = value
        return out

    student = theirs(saved["student"], "")
    trunk = {k.removeprefix("trunk."): v for k, v in student.items() if k.startswith("trunk.")}
    heads = {k.removeprefix("heads."): v for k, v in student.items() if k.startswith("heads.")}
    loss = {**theirs(saved["teacher"], "momentum_teacher.module."), "center": made.center}
    file = {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}, "loss": loss}}
    torch.save(file, tmp_path / "vissl.torch")
    assert set(from_vissl(file)) == {"student", "teacher", "dino_loss"}
    again = task()
    nn.init.zeros_(again.center)
    again.continue_from(tmp_path / "vissl.torch")
    torch.testing.assert_close(again.state_dict(), made.state_dict(), atol=0, rtol=0)
    model = create_model("xcit_nano_12_p8", weights=tmp_path / "vissl.torch", which="student", **OPTIONS)
    torch.testing.assert_close(model.state_dict(), made.model.state_dict(), atol=0, rtol=0)


def test_a_file_of_one_network_in_place_of_the_other(full, tmp_path):
    _, path = full
    saved = torch.load(path, weights_only=True)
    alone = tmp_path / "student.pth"
    torch.save({"student": saved["student"]}, alone)
    with pytest.raises(BadFile) as error:
        create_model("xcit_nano_12_p8", weights=alone, which="teacher", **OPTIONS)
    assert str(error.value) == f"{alone} has no weights under 'teacher'; entries with weights: 'student'."
    with pytest.raises(BadFile) as error:
        read_full(alone)
    assert str(error.value) == (
        f"{alone} is no full checkpoint of a DINO run: it has no 'teacher'. A file of backbone weights is for"
        " model.weights."
    )


def test_another_architecture_or_head(full):
    _, path = full
    with pytest.raises(BadFile) as error:
        create_model("xcit_nano_12_p8", weights=path, depth=2, dim=32)
    assert str(error.value) == (
        f"{path} does not fit (official): missing: 'backbone.blocks.1.gamma1', 'backbone.blocks.1.gamma2',"
        " 'backbone.blocks.1.gamma3', 'backbone.blocks.1.norm1.weight' and 22 more."
    )
    with pytest.raises(BadFile) as error:
        task(prototypes=9).continue_from(path)
    assert str(error.value) == (
        f"{path} has another projection head: last_layer.weight_g is 6x1, the recipe's 9x1. See task.prototypes,"
        " hidden, bottleneck, layers, norm."
    )
