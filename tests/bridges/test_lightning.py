"""Recipes under Lightning's Trainer: the losses of `tetravit.train`, resume, scores, averages, two processes."""

import importlib
import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

L = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.slow  # its import takes seconds

import tetravit  # noqa: E402
from tetravit.bridges.lightning import LightningTask  # noqa: E402
from tetravit.engine.guard import NotFinite  # noqa: E402
from tetravit.engine.log import Reporter  # noqa: E402
from tetravit.runs import train  # noqa: E402

OPTIONS = {
    "steps": 4,
    "data": {"batch_size": 16, "workers": 0, "options": {"fraction": 0.06}},
    "model": {"options": {"depth": 1, "dim": 32, "num_heads": 2}, "drop_path": 0.2},
    "run": {"log_steps": 1, "evaluate_epochs": 0, "device": "cpu"},
    "optim": {"warmup_steps": 1, "clip": 0.5},
}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def options(**changes):
    return {**OPTIONS, **changes}


class Losses(L.Callback):
    """The loss of every micro-batch."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def fit(task, tmp_path, ckpt_path=None, callbacks=(), **changes):
    losses = Losses()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            **{**task.trainer_options(), **QUIET, "devices": 1, "limit_val_batches": 0, **changes},
            default_root_dir=tmp_path,
            callbacks=[losses, *callbacks],
            enable_checkpointing=bool(callbacks),
        )
        trainer.fit(task, ckpt_path=ckpt_path)
    return losses.values, trainer


def ours(tmp_path, **changes):
    """The losses of `tetravit.train`, and its weights."""

    class Kept(Reporter):
        values = ()

        def step(self, record):
            self.values = (*self.values, record["loss"])

    kept = Kept()
    task = LightningTask("digits", **changes)
    train(task.run.recipe, tmp_path / "run", reporters=[kept])
    return list(kept.values), tetravit.load(tmp_path / "run" / "last.safetensors")


def saving(tmp_path):
    return L.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_losses_and_weights_are_those_of_train(tmp_path, precision):
    changes = options(run={**OPTIONS["run"], "precision": precision})
    task = LightningTask("digits", **changes)
    losses, _ = fit(task, tmp_path)
    expected, model = ours(tmp_path, **changes)
    assert losses == expected
    task.save(tmp_path / "mine.safetensors")
    assert task.trainer.precision == {"float32": "32-true", "bf16": "bf16-mixed"}[precision]
    again = tetravit.load(tmp_path / "mine.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_accumulated_steps_are_those_of_train(tmp_path):
    changes = options(steps=2, run={**OPTIONS["run"], "accumulate": 2})
    task = LightningTask("digits", **changes)
    losses, trainer = fit(task, tmp_path)
    expected, _ = ours(tmp_path, **changes)
    assert trainer.global_step == 2
    assert [sum(losses[i : i + 2]) for i in (0, 2)] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError) as error:
        fit(LightningTask("digits", **changes), tmp_path, accumulate_grad_batches=1)
    assert str(error.value) == (
        "A step of this recipe has 2 micro-batches: Trainer(accumulate_grad_batches=2), or run.accumulate=1 in the"
        " recipe; got accumulate_grad_batches=1."
    )


def test_a_resumed_run_has_the_losses_of_a_whole_one(tmp_path):
    """From the middle of an epoch and into the next: five steps an epoch, seven in all."""
    changes = options(steps=7)
    whole, _ = fit(task := LightningTask("digits", **changes), tmp_path / "a", callbacks=[saving(tmp_path)])
    (path,) = tmp_path.glob("*step=4.ckpt")
    second = LightningTask("digits", **changes)
    rest, trainer = fit(second, tmp_path / "b", str(path))
    assert trainer.global_step == 7
    assert rest == whole[4:]
    assert task.run.loader.steps_per_epoch == 5
    for a, b in ((task.state_dict(), second.state_dict()), (task.run.ema.state(), second.run.ema.state())):
        assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.slow
def test_scores_are_logged_and_checkpoints_load_without_a_trainer(tmp_path):
    task = LightningTask("digits", **options(steps=2))
    _, trainer = fit(
        task, tmp_path, callbacks=[saving(tmp_path)], limit_val_batches=None, val_check_interval=2
    )
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {"val_top1", "val_loss", "val_ema_top1", "loss"} <= set(values)
    assert values["val_top1"] == pytest.approx(task.run.scores()["top1"])
    (path,) = tmp_path.glob("*step=2.ckpt")
    loaded = LightningTask.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert loaded.run.recipe == task.run.recipe
    for which in ("raw", "ema"):
        task.save(tmp_path / "a.safetensors", which)
        loaded.save(tmp_path / "b.safetensors", which)
        a, b = (tetravit.load(tmp_path / f"{name}.safetensors").state_dict() for name in "ab")
        assert all(torch.equal(value, b[name]) for name, value in a.items())
    images = (
        torch.randn(2, 1, 32, 32) if task.run.task.model.backbone.in_chans == 1 else torch.randn(2, 3, 32, 32)
    )
    assert loaded.eval()(images).shape == (2, 10)


def test_learning_rates_follow_the_recipe(tmp_path):
    seen = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    task = LightningTask("digits", **options())
    fit(task, tmp_path, callbacks=[Rates()])
    assert seen == pytest.approx([task.run.objects.rate(step) for step in range(4)])
    assert len(set(seen)) > 2


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    task = LightningTask("digits", **options())
    before = {name: value.clone() for name, value in task.state_dict().items()}
    plain = task.task.step

    def step(batch, progress):
        values = plain(batch, progress)
        return {name: value * float("nan") for name, value in values.items()}

    task.task.step = step
    with pytest.raises(
        NotFinite, match=r"^The loss of step 0 is not finite; the weights are as they were before it."
    ):
        fit(task, tmp_path)
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("trainer", "text"),
    [
        (
            {"gradient_clip_val": 1.0},
            "The recipe clips gradients: LightningTask(RECIPE, optim={'clip': 1}); got Trainer(gradient_clip_val=1).",
        ),
        (
            {"precision": "16-true"},
            "LightningTask computes in float32 or bf16: Trainer(precision='bf16-mixed'); got '16-true'.",
        ),
        (
            {"precision": "bf16-true"},
            "LightningTask computes in float32 or bf16: Trainer(precision='bf16-mixed'); got 'bf16-true'.",
        ),
    ],
)
def test_a_trainer_that_contradicts_the_recipe_is_one_line(tmp_path, trainer, text):
    with pytest.raises(ValueError) as error:
        fit(LightningTask("digits", **options()), tmp_path, **trainer)
    assert str(error.value) == text


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_a_strategy_that_divides_the_weights_is_refused(name):
    """Lightning starts these on GPUs alone; the check comes before anything is divided."""
    task = LightningTask("digits", **options())
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, gradient_clip_val=None, precision="32-true", strategy=type(name, (), {})()
    )
    with pytest.raises(ValueError) as error:
        task._check(trainer)
    assert str(error.value) == (
        f"LightningTask keeps whole weights in every process: Trainer(strategy='ddp'); got {name}. `tetravit train"
        " RECIPE run.strategy=fsdp` divides them."
    )


def test_without_averages_there_are_none_to_save(tmp_path):
    task = LightningTask("digits", **options(optim={**OPTIONS["optim"], "ema": 0.0}))
    with pytest.raises(ValueError) as error:
        task.save(tmp_path / "a.safetensors", "ema")
    assert str(error.value) == (
        "There are no averaged weights: optim.ema is 0, or nothing was trained yet; use weights='raw'."
    )


def test_without_lightning_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "tetravit.bridges.lightning")
    with pytest.raises(ImportError) as error:
        importlib.import_module("tetravit.bridges.lightning")
    assert str(error.value) == (
        "tetravit.bridges.lightning needs Lightning: pip install 'tetravit[lightning]'."
    )


SCRIPT = """
import json, sys, warnings
import torch
import lightning.pytorch as L
from tetravit.bridges.lightning import LightningTask

class Losses(L.Callback):
    values = ()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values = (*self.values, float(trainer.strategy.reduce(outputs["loss"])))

warnings.simplefilter("ignore")
task, losses = LightningTask("digits", **json.loads(sys.argv[1])), Losses()
trainer = L.Trainer(**task.trainer_options(), **json.loads(sys.argv[2]), callbacks=[losses], devices=2,
                    strategy="ddp", enable_checkpointing=False)
trainer.fit(task)
task.save(sys.argv[3])
if trainer.is_global_zero:
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(json.dumps({"losses": losses.values, "scores": scores}))
"""


@pytest.mark.slow
def test_two_processes_compute_the_steps_of_one(tmp_path):
    changes = options(steps=3, run={**OPTIONS["run"], "precision": "float32"})
    expected, model = ours(tmp_path, **changes)
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [json.dumps(changes), json.dumps(QUIET), str(tmp_path / "both.safetensors")]
    text = subprocess.run(
        [*torchrun, str(tmp_path / "script.py"), *arguments], capture_output=True, text=True, check=True
    ).stdout
    row = json.loads(text.strip().splitlines()[-1])
    assert row["losses"] == pytest.approx(expected, rel=1e-4)
    assert "val_top1" in row["scores"]
    both = tetravit.load(tmp_path / "both.safetensors").state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(both[name], value, atol=2e-3, rtol=1e-2)
