"""A run that segments, cut and continued: the same bits, scores and pictures as in one piece."""

import os
import signal

import pytest

from tetravit.engine.signals import Interrupted
from tetravit.recipe import find, load
from tetravit.runs import build as training
from tetravit.runs import train

pytestmark = pytest.mark.slow

STEPS = 7
CHANGES = [
    f"steps={STEPS}",
    "model.options={dims = [8, 8, 8, 8], depths = [1, 1, 1, 1], num_heads = [1, 1, 1, 1]}",
    "model.drop_path=0.2",
    "model.head_options={width = 8, auxiliary = 0.4, dropout = 0.1}",
    "data.options={size = 48, count = 20}",
    "data.augment=rescale(48, 192, (0.5, 2.0)) | cut(48, 0.75) | flip | distort | fill(48)",
    "data.image_size=48",
    "data.batch_size=4",
    "run.accumulate=2",
    "run.device=cpu",
    "run.evaluate_steps=3",
    "run.save_epochs=0",
    "run.save_minutes=0",
    "run.log_steps=2",
    "optim.ema=0.9",
    "optim.warmup_steps=2",
]
FILES = ("metrics.jsonl", "evaluation.json")
WEIGHTS = ("best.safetensors", "last.safetensors")


def run(folder, monkeypatch=None, cut=-1, **options):
    """Train in a folder; a signal comes while the batch of step `cut` is fetched."""
    if monkeypatch is not None:
        real = training.make_train_loader

        def cutting(*args, **kwargs):
            loader = real(*args, **kwargs)
            batches = loader.batches

            def until(start=0):
                for step, micros in enumerate(batches(start), start):
                    if step == cut:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield micros

            loader.batches = until
            return loader

        monkeypatch.setattr(training, "make_train_loader", cutting)
    recipe = None if "resume" in options else load(find("shapes-seg"), CHANGES)
    return train(recipe, None if "resume" in options else folder, reporters=[], **options)


def tensors(file):
    from safetensors.torch import load_file

    return load_file(file)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(folder)
    return folder


@pytest.mark.parametrize("cut", [0, 2, 5])
def test_a_cut_run_that_segments_ends_at_the_same_bits(straight, cut, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        run(folder, patch, cut)
    run(folder, resume=folder)
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name
    for name in WEIGHTS:
        ours, wanted = tensors(folder / name), tensors(straight / name)
        assert ours.keys() == wanted.keys()
        assert all((ours[key] == wanted[key]).all() for key in wanted), name
