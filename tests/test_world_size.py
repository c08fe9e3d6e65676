"""The number of processes changes no sample and no draw: 1, 2 and 4 ranks, and 1 to 2 to 1 within a run."""

import contextlib
import json
import multiprocessing
import os
import socket

import pytest
import torch

from tetravit.engine.log import Reporter
from tetravit.engine.signals import Interrupted
from tetravit.recipe import validated
from tetravit.runs import train

RECIPE = {
    "steps": 9,
    "task": {"name": "classify"},
    "model": {"name": "xcit_nano_12_p16", "drop_path": 0.3, "options": {"depth": 2}},
    "data": {
        "name": "digits", "image_size": 32, "batch_size": 16, "augment": "crop | erase(0.5)", "repeats": 3,
        "workers": 0, "mix": "mixup(0.8) | cutmix(1.0)", "options": {"fraction": 0.1},
    },
    "optim": {"warmup_steps": 3, "lr": 2e-4, "clip": 1.0},
    "run": {"log_steps": 1, "save_steps": 3, "device": "cpu", "evaluate_epochs": 0},
}  # fmt: skip
DETECTOR = {
    "steps": 3,
    "task": {"name": "detect"},
    "model": {
        "name": "gcvit_xxtiny", "head": "mask_rcnn", "drop_path": 0.3,
        "head_options": {"width": 16, "num_samples": 16, "num_candidates": 30, "num_proposals": 30},
        "options": {"dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": [4, 4, 4, 2]},
    },
    "data": {
        "name": "shapes_det", "image_size": 64, "batch_size": 4, "augment": "flip", "workers": 0,
        "options": {"size": 64, "count": 12},
    },
    "optim": {"lr": 1e-3},
    "run": {"log_steps": 1, "device": "cpu", "evaluate_epochs": 0},
}  # fmt: skip


class Notes(Reporter):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


class StopAfter(Notes):
    """A signal to every rank in the step after `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def tick(self, done):
        if done == self.at:
            os.kill(os.getpid(), 15)


def run(folder, stop_after=None, recipe=RECIPE, **environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    reporter = Notes() if stop_after is None else StopAfter(stop_after)
    with contextlib.nullcontext() if stop_after is None else pytest.raises(Interrupted):
        train(validated(recipe), folder, continuing=True, reporters=[reporter])
    if environment.get("RANK", "0") == "0":
        (folder.parent / "notes.json").write_text(json.dumps(reporter.texts))


def on_ranks(size, folder, stop_after=None, recipe=RECIPE):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_world_size"])
    places = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
         "MASTER_PORT": port}
        for rank in range(size)
    ]  # fmt: skip
    ranks = [context.Process(target=run, args=(folder, stop_after, recipe), kwargs=place) for place in places]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=150)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * size
    return json.loads((folder.parent / "notes.json").read_text())


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


@pytest.mark.slow
def test_ranks_and_changes_of_their_number_give_the_same_losses(tmp_path):
    on_ranks(1, tmp_path / "one")
    one = losses(tmp_path / "one")
    assert len(one) == 9
    for size in (2, 4):
        on_ranks(size, tmp_path / str(size))
        assert losses(tmp_path / str(size)) == pytest.approx(one, abs=1e-5)

    folder = tmp_path / "changing"
    on_ranks(1, folder, stop_after=3)
    line = "World size changed {} -> {}: same samples, same losses up to rounding."
    assert line.format(1, 2) in on_ranks(2, folder, stop_after=6)
    assert line.format(2, 1) in on_ranks(1, folder)
    assert losses(folder) == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
def test_ranks_draw_the_same_regions_of_each_image(tmp_path):
    """Mask R-CNN samples anchors and regions, and its losses are per sample."""
    for size in (1, 2, 4):
        on_ranks(size, tmp_path / str(size), recipe=DETECTOR)
    one = losses(tmp_path / "1")
    assert len(one) == 3
    for size in (2, 4):
        assert losses(tmp_path / str(size)) == pytest.approx(one, abs=1e-5)
