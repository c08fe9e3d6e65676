"""`tetravit weights export-dino`: a self-supervised run as the checkpoint of the DINO code."""

import pytest
import torch
from tests.test_dino_runs import RECIPE

from tetravit.engine.checkpoint import read
from tetravit.models import create_model
from tetravit.recipe import dump, find, load, loads
from tetravit.runs import train
from tetravit.weights.selfsup import read_full


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "dino"
    train(
        loads(RECIPE, ["steps=5", "run.evaluate_epochs=9", "data.options={fraction = 0.01}"]),
        folder,
        reporters=[],
    )
    return folder


@pytest.mark.slow
def test_both_networks_heads_and_the_centre(ask, run, tmp_path):
    file = tmp_path / "checkpoint.pth"
    answer = ask("weights", "export-dino", run, "--out", file)
    assert (answer.code, answer.out) == (0, f"{file}\n")
    assert answer.err == f"{run} after step 5 as the DINO code saves it\n"
    state, full = read(run / "checkpoints" / "step_000005").tensors("model"), read_full(file)
    assert torch.equal(full.center, state["center"])
    assert full.epoch == 5  # one step each
    for which, start in (("teacher", "teacher."), ("student", "model.")):
        head = getattr(full, which).head
        mine = "teacher_head." if which == "teacher" else "head."
        assert {mine + name for name in head} == {name for name in state if name.startswith(mine)}
        assert all(torch.equal(value, state[mine + name]) for name, value in head.items())
        model = create_model("xcit_nano_12_p8", weights=file, which=which, depth=1, dim=32)
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[start + name]), name
    assert all(name.startswith("module.") for name in torch.load(file, weights_only=True)["teacher"])


@pytest.mark.slow
def test_what_is_no_self_supervised_run(ask, run, tmp_path):
    def refused():
        answer = ask("weights", "export-dino", tmp_path)
        assert (answer.code, answer.out) == (2, "")
        return answer.err.removeprefix(f"tetravit weights export-dino: {tmp_path} ").rstrip()

    assert refused() == "is not the folder of a run: it has no recipe.toml and run.json."
    (tmp_path / "recipe.toml").write_text((run / "recipe.toml").read_text())
    (tmp_path / "run.json").write_text('{"id": "x"}')
    assert refused() == "has no checkpoint yet."
    (tmp_path / "recipe.toml").write_text(dump(load(find("digits"))))
    assert refused() == (
        "is a run of the task 'classify'; only a self-supervised run, of the task 'dino', has a teacher and a centre."
    )
