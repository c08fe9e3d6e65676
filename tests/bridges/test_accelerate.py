"""Recipes under accelerate: the losses of `tetravit.train`, resume, scores, two processes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

accelerate = pytest.importorskip("accelerate")

import tetravit  # noqa: E402
from tetravit.bridges.accelerate import AccelerateRun  # noqa: E402
from tetravit.engine.log import Reporter  # noqa: E402
from tetravit.runs import train  # noqa: E402

OPTIONS = {
    "steps": 4,
    "data": {"batch_size": 16, "workers": 0, "options": {"fraction": 0.06}},
    "model": {"options": {"depth": 1, "dim": 32, "num_heads": 2}, "drop_path": 0.2},
    "run": {"log_steps": 1, "evaluate_epochs": 0, "device": "cpu"},
    "optim": {"warmup_steps": 1, "clip": 0.5},
}


def start(precision="no", **changes):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    return AccelerateRun("digits", accelerator, **{**OPTIONS, **changes})


def losses(run, until=None):
    found = []
    for step, batches in run.steps():
        if step == until:
            break
        found.append(float(run.step(step, batches)["loss"]))
    return found


def ours(recipe, folder):
    class Kept(Reporter):
        values = ()

        def step(self, record):
            self.values = (*self.values, record["loss"])

    kept = Kept()
    train(recipe, folder, reporters=[kept])
    return list(kept.values), tetravit.load(folder / "last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "changes"), [("no", {}), ("bf16", {"steps": 2})])
def test_losses_and_weights_are_those_of_train(tmp_path, precision, changes):
    named = {"no": "float32", "bf16": "bf16"}[precision]
    run = start(precision, **changes, run={**OPTIONS["run"], "precision": named, "accumulate": 2})
    expected, model = ours(run.run.recipe, tmp_path / "run")
    assert losses(run) == pytest.approx(expected, rel=1e-6)
    run.save(tmp_path / "mine.safetensors")
    again = tetravit.load(tmp_path / "mine.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_resumed_loop_has_the_losses_of_a_whole_one(tmp_path):
    whole = losses(start())
    first = start()
    assert losses(first, until=3) == whole[:3]
    first.accelerator.save_state(str(tmp_path / "state"))
    second = start()
    second.accelerator.load_state(str(tmp_path / "state"))
    assert second.done == 3
    assert losses(second) == whole[3:]
    scores = second.scores()
    assert {"top1", "ema_top1"} <= set(scores)


def test_an_accelerator_that_contradicts_the_recipe_is_one_line():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError) as error:
        AccelerateRun("digits", accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4), **OPTIONS)
    assert str(error.value) == (
        "The recipe accumulates gradients: run.accumulate=4; got Accelerator(gradient_accumulation_steps=4)."
    )


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_processes_that_divide_the_weights_are_refused(kind):
    accelerator = SimpleNamespace(
        gradient_accumulation_steps=1, mixed_precision="no", distributed_type=SimpleNamespace(value=kind)
    )
    with pytest.raises(ValueError) as error:
        AccelerateRun("digits", accelerator, **OPTIONS)
    assert str(error.value) == (
        f"AccelerateRun keeps whole weights in every process (MULTI_GPU, MULTI_CPU); got {kind}. `tetravit train"
        " RECIPE run.strategy=fsdp` divides them."
    )


SCRIPT = """
import json, sys
from accelerate import Accelerator
from tetravit.bridges.accelerate import AccelerateRun

accelerator = Accelerator(cpu=True)
run = AccelerateRun("digits", accelerator, **json.loads(sys.argv[1]))
losses = []
for step, batches in run.steps():
    loss = run.step(step, batches)["loss"]
    losses.append(accelerator.reduce(loss, "mean").item())
scores = run.scores()
run.save(sys.argv[2])
if accelerator.is_main_process:
    print(json.dumps({"size": accelerator.num_processes, "losses": losses, "scores": scores}))
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_compute_the_steps_of_one(tmp_path):
    run = start(steps=3, run={**OPTIONS["run"], "accumulate": 2})
    expected, model = ours(run.run.recipe, tmp_path / "run")
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changes = {**OPTIONS, "steps": 3, "run": {**OPTIONS["run"], "accumulate": 2}}
    text = subprocess.run(
        [*torchrun, str(tmp_path / "script.py"), json.dumps(changes), str(tmp_path / "both.safetensors")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    row = json.loads(text.strip().splitlines()[-1])
    assert row["size"] == 2
    assert row["losses"] == pytest.approx(expected, rel=1e-4)
    assert "top1" in row["scores"]
    both = tetravit.load(tmp_path / "both.safetensors").state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(both[name], value, atol=2e-3, rtol=1e-2)
