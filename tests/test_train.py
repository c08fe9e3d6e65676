"""A recipe becomes a run folder, and every refusal comes before anything is written."""

import json
import os
import re
import signal

import pytest
import torch

from tetravit.engine import checkpoint
from tetravit.engine.guard import NotFinite
from tetravit.engine.log import Console, Reporter
from tetravit.engine.signals import Interrupted
from tetravit.recipe import find, load, validated
from tetravit.runs import train
from tetravit.runs.plan import length
from tetravit.runs.resume import check_same
from tetravit.weights.fileformat import read

pytestmark = pytest.mark.slow  # whole runs and other processes

SMALL = {
    "epochs": 2,
    "task": {"name": "classify", "label_smoothing": 0.1},
    "model": {"name": "xcit_nano_12_p16", "options": {"depth": 1}},
    "data": {
        "name": "digits",
        "image_size": 32,
        "batch_size": 32,
        "augment": "crop",
        "workers": 0,
        "options": {"fraction": 0.1},
    },
    "optim": {"warmup_epochs": 1, "ema": 0.9},
    "run": {"log_steps": 2, "save_steps": 3},
}
STEPS = 8


def small(**changes):
    table = json.loads(json.dumps(SMALL))
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            table[section][key] = value
        else:
            table[section] = value
    return validated(table)


class Listener(Reporter):
    def __init__(self):
        self.plans, self.notes, self.summaries = [], [], []

    def start(self, plan):
        self.plans.append(plan)

    def note(self, text):
        self.notes.append(text)

    def finish(self, summary):
        self.summaries.append(summary)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    heard = Listener()
    return train(small(), folder, reporters=[heard]), heard, folder


def test_the_run_folder_holds_all_that_is_promised(run):
    summary, heard, folder = run
    names = {p.name for p in folder.iterdir()}
    promised = {
        "recipe.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "best.safetensors",
        "last.safetensors",
    }
    assert promised <= names
    assert not {n for n in names if n.startswith(".") or "lock" in n}
    assert load(folder / "recipe.toml") == small()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert {
        "id",
        "version",
        "commit",
        "dirty",
        "torch",
        "device",
        "world_size",
        "seed",
        "command",
        "end",
    } <= set(record)
    assert (folder / "report.html").read_text()
    assert heard.notes == []
    assert summary.steps == STEPS
    assert summary.run_dir == folder
    assert heard.summaries == [summary]


def test_the_log_tells_steps_and_evaluations(run):
    lines = [json.loads(x) for x in (run[2] / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if x["event"] == "step"]
    assert [x["step"] for x in steps] == [2, 4, 6, 8]
    assert set(steps[0]) == {"event", "step", "epoch", "lr", "loss", "accuracy"}
    scores = [x for x in lines if x["event"] == "evaluation"]
    assert [x["step"] for x in scores] == [4, 8]
    assert {"top1", "top5", "loss", "ema_top1", "ema_top5", "ema_loss"} < set(scores[0])
    timing = [json.loads(x) for x in (run[2] / "timing.jsonl").read_text().splitlines()]
    assert {"images_per_s", "seconds", "left_s"} < set(timing[0])


def test_the_best_weights_explain_themselves(run):
    summary, _, folder = run
    tensors, header = read(folder / "best.safetensors")
    assert (header.model, header.num_classes, header.task) == ("xcit_nano_12_p16", 10, "classify")
    assert header.class_names == tuple("0123456789")
    assert (header.preprocess.size, header.preprocess.crop) == (32, 0.875)
    assert "label_smoothing = 0.1" in header.recipe
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["top1"] == summary.best
    assert sum(map(sum, evaluation["confusion"]["matrix"])) == evaluation["count"]
    from tetravit.models import create_model

    model = create_model(header.model, num_classes=10, **header.options)
    model.load_state_dict(tensors)


def test_the_plan_comes_first_and_the_summary_names_the_next_command(run):
    summary, heard, folder = run
    plan = dict(heard.plans[0].lines)
    assert plan["steps"] == "2 epochs of 4 steps: 8 steps"
    assert plan["batch"] == "32 = 1 x 1 x 32 (processes x accumulation x batch)"
    assert plan["learning rate"] == "3.125e-05 after 4 warm-up steps, 1.31e-05 at the end"
    assert (plan["optimizer"], plan["EMA decay"], plan["weights"]) == ("adamw", "0.9", "none (random)")
    assert re.fullmatch(r"about \d+ MiB per process", plan["memory"])
    assert re.fullmatch(r"about \d+ s at [\d.e+]+ images/s, measured on 4 images per process", plan["time"])
    assert plan["data"].endswith("training images, 359 validation images, 32 x 32 pixels")
    share = f"{100 * summary.best:.2f} %"
    assert re.fullmatch(
        rf"Best val top-1 {share} \(step {summary.best_step}\) in \d+ s: {folder}/best.safetensors",
        summary.lines[0],
    )
    assert summary.lines[1] == f"Report: {folder}/report.html"
    assert summary.lines[2] == f"Next: tetravit predict {folder}/best.safetensors IMAGE"


def test_a_dry_run_writes_nothing(tmp_path):
    heard = Listener()
    train(small(), tmp_path / "a" / "b", reporters=[heard], dry_run=True)
    assert len(heard.plans) == 1
    assert list(tmp_path.iterdir()) == []


class StopAt(Listener):
    """Sends a signal when a step is logged."""

    def __init__(self, step):
        super().__init__()
        self.at = step

    def step(self, record):
        if record["step"] == self.at:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_a_stopped_run_goes_on_to_the_same_end(run, tmp_path):
    folder = tmp_path / "cut"
    with pytest.raises(Interrupted) as stop:
        train(small(), folder, reporters=[StopAt(6)])
    assert str(stop.value) == (
        f"Stopped by SIGUSR1 after step 7 of 8; continue with: tetravit train --resume {folder}"
    )
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    heard = Listener()
    summary = train(small(data__workers=1), resume=folder, reporters=[heard])
    assert dict(heard.plans[0].lines)["resumed"] == "after step 7"
    assert (folder / "metrics.jsonl").read_bytes() == (run[2] / "metrics.jsonl").read_bytes()
    for name in ("best", "last"):
        ours, theirs = read(folder / f"{name}.safetensors")[0], read(run[2] / f"{name}.safetensors")[0]
        assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    assert summary.best == run[0].best
    again = train(resume=folder, reporters=[])  # a finished run has nothing left to do
    assert again.best == run[0].best


def test_a_damaged_newest_checkpoint_is_named(run, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(run[2], folder)
    file = folder / "checkpoints" / "step_000008" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        checkpoint.BadCheckpoint, match=r"step_000008/model.safetensors has 100 bytes instead of"
    ):
        train(resume=folder, reporters=[], on_corrupt="stop")
    heard = Listener()
    train(resume=folder, reporters=[heard])
    assert len(heard.notes) == 1
    assert heard.notes[0].endswith("Going on from step_000006, 2 steps earlier.")
    assert (folder / "metrics.jsonl").read_bytes() == (run[2] / "metrics.jsonl").read_bytes()


def test_a_loss_that_is_not_finite_leaves_its_images_in_a_file(tmp_path, monkeypatch):
    from tetravit.tasks.classify import Classify

    real = Classify.loss
    seen = []

    def spoilt(self, logits, targets):
        if len(logits) == 32:  # the rehearsal before the first step is smaller
            seen.append(0)
        return real(self, logits, targets) * (float("nan") if len(seen) == 3 else 1.0)

    monkeypatch.setattr(Classify, "loss", spoilt)
    with pytest.raises(NotFinite, match="The loss of step 2 is not finite"):
        train(small(), tmp_path / "run", reporters=[])
    bad = json.loads((tmp_path / "run" / "bad_step.json").read_text())
    assert (bad["step"], bad["what"], len(bad["names"])) == (2, "loss", 32)
    assert bad["names"][0].startswith("digits/train/")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__name": "image_folder", "data__options": {}},
            "The recipe lacks data.root: data.root=FOLDER says where the data set 'image_folder' lies.",
        ),
        ({"model__options": {"deep": 1}}, "xcit_nano_12_p16 has no option 'deep'. Did you mean 'depth'?"),
        ({"run__device": "gpu"}, "A device is auto, cpu, cuda, cuda:N or mps; got 'gpu'."),
        (
            {"run__accumulate": 5},
            "data.batch_size must be a multiple of GPUs x accumulation; got batch_size=32, 1 GPUs, accumulate=5.",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        train(small(**changes), tmp_path / "run", reporters=[])
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_folders_that_do_not_fit_are_refused(run, tmp_path):
    folder = run[2]
    (tmp_path / "empty").mkdir()
    cases = [
        (
            {"recipe": small(), "run_dir": folder},
            f"{folder} already holds a run. Continue it with --resume {folder} or --continue, or take another"
            " folder.",
        ),
        ({}, "train takes a recipe, or a run to resume; got neither."),
        (
            {"resume": tmp_path / "empty"},
            f"{tmp_path / 'empty'} is not the folder of a run: it has no recipe.toml and run.json.",
        ),
        (
            {"resume": folder, "run_dir": tmp_path},
            f"A resumed run stays in its folder {folder}; got {tmp_path}.",
        ),
        (
            {"resume": folder, "recipe": small(epochs=3)},
            "A resumed run keeps epochs: it is 2; got 3. The schedule 'cosine' ends there. A new run from its"
            f" weights: tetravit train {folder}/recipe.toml epochs=3 model.weights={folder}/last.safetensors",
        ),
        (
            {"resume": folder, "recipe": small(run__seed=3)},
            "A resumed run keeps run.seed: it is 0; got 3.",
        ),
        (
            {"recipe": small(), "run_dir": folder / "run.json" / "x"},
            f"{folder / 'run.json' / 'x'} cannot be written: Not a directory.",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError) as error:
            train(**arguments, reporters=[])
        assert str(error.value) == message


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    class Second(Listener):
        text = ""

        def step(self, record):
            if not self.text:
                try:
                    train(resume=tmp_path / "run", reporters=[])
                except ValueError as error:
                    self.text = str(error)

    second = Second()
    train(small(epochs=1), tmp_path / "run", reporters=[second])
    assert second.text.startswith(f"{tmp_path / 'run'} is in use by process {os.getpid()} on ")


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    train(small(epochs=1), tmp_path / "run", reporters=[Console()])
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("  model          xcit_nano_12_p16, ")
    assert any(line.startswith("step 2/4  epoch 0.5  lr ") and "images/s" in line for line in lines)
    assert lines[-1] == f"Next: tetravit predict {tmp_path}/run/best.safetensors IMAGE"


def test_weights_to_start_from(run, tmp_path):
    first = train(
        small(epochs=1, model__weights=str(run[2] / "best.safetensors"), optim__lr=1e-12, optim__min_lr=0.0,
              optim__warmup_lr=0.0, optim__ema=0.0),
        tmp_path / "run",
        reporters=[],
    )  # fmt: skip
    ours, theirs = (read(f)[0] for f in (tmp_path / "run/last.safetensors", run[2] / "best.safetensors"))
    torch.testing.assert_close(ours["head.weight"], theirs["head.weight"])
    assert first.steps == 4


def test_a_set_smaller_than_a_batch_takes_a_smaller_one(tmp_path):
    heard = Listener()
    train(small(data__batch_size=512), tmp_path / "run", reporters=[heard], dry_run=True)
    plan = dict(heard.plans[0].lines)
    assert plan["note"] == "batch of 139 in place of 512: the training set has 139 images"
    assert plan["steps"] == "2 epochs of 1 step: 2 steps"


@pytest.mark.parametrize(
    ("steps", "per_epoch", "text"),
    [
        (12, 5000, "12 steps (0.0024 epochs)"),
        (375_300, 1251, "300 epochs of 1,251 steps: 375,300 steps"),
        (4, 4, "1 epoch of 4 steps: 4 steps"),
    ],
)
def test_the_length_of_a_run_in_words(steps, per_epoch, text):
    assert length(steps, per_epoch) == text


def test_a_run_of_an_earlier_version_is_refused_with_the_way_on(run, tmp_path):
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(run[2], folder)
    record = json.loads((folder / "run.json").read_text())
    del record["layout"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError) as error:
        train(resume=folder, reporters=[])
    assert str(error.value) == (
        f"{folder} was written by another version of tetravit, whose runs cannot be resumed with this one;"
        f" start a new run from its weights: model.weights={folder}/last.safetensors"
    )


@pytest.mark.parametrize(
    ("schedule", "epochs", "grows"), [("constant", 3, True), ("constant", 1, False), ("poly", 3, False)]
)
def test_a_run_grows_where_its_schedule_has_no_end(tmp_path, schedule, epochs, grows):
    kept, wanted = (small(epochs=n, optim__schedule=schedule) for n in (2, epochs))
    if grows:
        check_same(kept, wanted, tmp_path)
        return
    with pytest.raises(ValueError, match=rf"^A resumed run keeps epochs: it is 2; got {epochs}\. "):
        check_same(kept, wanted, tmp_path)


def test_another_head_leaves_options_that_it_does_not_have():
    recipe = load(find("shapes-det"), ["model.head=retinanet"])
    assert "num_proposals" not in recipe.model.head_options
    assert recipe.model.head_options["width"] == load(find("shapes-det")).model.head_options["width"]
    assert recipe.notes == (
        "model.head_options without num_samples, num_proposals, which retinanet does not have",
    )


def test_fine_tuning_from_random_weights_is_said():
    listener = Listener()
    for changes in ({"optim__layer_decay": 0.8}, {"model__freeze": "backbone"}, {}):
        train(small(**changes), reporters=[listener], dry_run=True)
    first, second, plain = (dict(plan.lines).get("warning") for plan in listener.plans)
    assert plain is None
    assert first == second
    assert first == (
        "a recipe for fine-tuning starts from random weights; model.weights=in1k starts from xcit_nano_12_p16.in1k"
        " (Apache-2.0). Without a network: `tetravit weights bundle xcit_nano_12_p16.in1k` elsewhere, `tetravit"
        " weights import FILE` here; TETRAVIT_OFFLINE=1 skips the try"
    )
