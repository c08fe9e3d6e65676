"""Dense models on two processes (gloo): every parameter that trains gets a gradient, and each image one score."""

import json
import multiprocessing
import os
import socket

import pytest
import torch

from tetravit.recipe import list_recipes, load
from tetravit.runs import train
from tetravit.weights.fileformat import read

pytestmark = pytest.mark.slow

SMALL = [
    "run.device=cpu", "run.log_steps=1", "run.save_epochs=0", "run.evaluate_steps=0", "data.batch_size=2",
    "data.val_batch_size=1", "data.options={size = 64, count = 5}", "data.image_size=64",
    "model.options={depths = [2, 2, 2, 2], window_size = [4, 4, 4, 4]}",
    "optim.warmup_steps=0", "optim.ema=0.0", "steps=2",
]  # fmt: skip
NARROW = {"width": 16, "num_samples": 16, "num_candidates": 30, "num_proposals": 30}
HEADS = {"mask_rcnn": NARROW, "cascade": NARROW, "retinanet": {"width": 16}}


def recipe_of(head, *changes):
    recipe = load(list_recipes()["shapes-det"], [*SMALL, *changes])
    model = recipe.model.model_copy(update={"head": head, "head_options": HEADS[head]})
    return recipe.model_copy(update={"model": model})


COLUMN = {"dim": 16, "depth": 4, "num_heads": 2, "out_blocks": (0, 1, 2, 3)}
SEGMENTERS = {
    "xcit_nano_12_p16": COLUMN,
    "deit_tiny": COLUMN,
    "twins_svt_small": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)},
}


def segmenter(name):
    changes = [change for change in SMALL if not change.startswith(("model.", "steps"))]
    recipe = load(list_recipes()["shapes-seg"], [*changes, "data.batch_size=4", "steps=3"])
    model = {"name": name, "head_options": {"width": 8}, "options": SEGMENTERS[name]}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})


def run(rank, port, folder, head):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    recipe = recipe_of(head) if head in HEADS else segmenter(head)
    train(recipe, folder / head, reporters=[])
    (folder / f"{head}_{rank}").touch()


def on_two_ranks(head, tmp_path):
    """What the evaluation of a run of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run, args=(rank, port, tmp_path, head)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    assert (tmp_path / f"{head}_0").exists()
    assert (tmp_path / f"{head}_1").exists()
    return json.loads((tmp_path / head / "evaluation.json").read_text())


@pytest.mark.parametrize("name", SEGMENTERS)
def test_two_ranks_segment_together(name, tmp_path):
    found = on_two_ranks(name, tmp_path)
    assert found["count"] == 5
    assert [picture["index"] for picture in found["pictures"]["first"]] == list(range(5))
    assert sum(found["pixels"]) > 0


@pytest.mark.parametrize("head", HEADS)
def test_two_ranks_train_and_score_together(head, tmp_path):
    found = on_two_ranks(head, tmp_path)
    assert found["count"] == 5  # each image once, whichever rank had it
    assert [picture["index"] for picture in found["pictures"]] == list(range(5))
    assert 0 <= found["box_ap"] <= 1


def test_a_run_that_was_cut_ends_at_the_same_bits(tmp_path):
    recipe = recipe_of("mask_rcnn", "steps=4", "run.save_steps=2")
    train(recipe, tmp_path / "whole", reporters=[])
    train(recipe, tmp_path / "cut", reporters=[])
    for name in ("last.safetensors", "best.safetensors"):
        (tmp_path / "cut" / name).unlink()
    for step in (tmp_path / "cut" / "checkpoints").iterdir():
        if step.name.endswith("4"):
            for file in step.iterdir():
                file.unlink()
            step.rmdir()
    train(resume=tmp_path / "cut", reporters=[])
    whole, cut = (read(tmp_path / name / "last.safetensors")[0] for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
