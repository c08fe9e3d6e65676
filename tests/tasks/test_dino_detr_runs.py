"""DINO-DETR in a run: micro-batches and ranks learn what the whole batch learns; cuts change no bit."""

import json
import multiprocessing
import os
import shutil
import socket

import pytest
import torch

from tetravit.data.datasets.shapes import ShapesDet
from tetravit.models import create_detector
from tetravit.recipe import list_recipes, load
from tetravit.runs import train
from tetravit.seeds import micro_batch
from tetravit.structures import Batch
from tetravit.weights.fileformat import read

BACKBONE = {"dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": [4, 4, 4, 2]}
HEAD = {
    "num_queries": 8, "max_detections": 8, "num_denoising": 3, "width": 16, "num_heads": 2, "num_points": 2,
    "hidden": 32, "encoder_layers": 1, "decoder_layers": 2,
}  # fmt: skip


def detector(**options):
    torch.manual_seed(0)
    head = {**HEAD, **options}
    return create_detector("gcvit_xxtiny", head="dino_detr", num_classes=8, head_options=head, **BACKBONE)


def drawings(count):
    data = ShapesDet(None, "train", size=64)
    samples = [data[i] for i in range(count)]
    return Batch(torch.stack([s.image for s in samples]) / 255.0, [s.target for s in samples])


def some(batch, places):
    return Batch(batch.images[places], [batch.targets[i] for i in places])


def gradients(parts, *, seed=5, step=3):
    """Of a step whose micro-batches are these parts of four drawings."""
    model, batch = detector().train(), drawings(4)
    micros = [some(batch, part) for part in parts]
    total = 0.0
    for i, micro in enumerate(micros):
        with micro_batch(seed, step, i, rows=len(parts[i])), model.whole_step(micros):
            loss = torch.stack(list(model.loss(micro).values())).sum() / len(micros)
            loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch():
    assert len({len(t.labels) for t in drawings(4).targets}) > 1
    loss, want = gradients([[0, 1, 2, 3]])
    for parts in ([[0, 1], [2, 3]], [[0], [1], [2], [3]]):
        also, got = gradients(parts)
        assert also == pytest.approx(loss, rel=1e-5)
        assert (got - want).norm() < 1e-3 * want.norm()
    assert gradients([[0, 1, 2, 3]], step=4)[0] != pytest.approx(loss, rel=1e-4)


def test_two_images_are_predicted_as_each_alone():
    model, batch = detector().eval(), drawings(2)
    together = model.detect(batch.images)
    for i in range(2):
        (alone,) = model.detect(batch.images[i : i + 1])
        torch.testing.assert_close(alone.boxes, together[i].boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(alone.scores, together[i].scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.labels, together[i].labels)


RUN = [
    "run.device=cpu", "run.log_steps=1", "run.save_epochs=0", "run.save_steps=1", "run.keep=9",
    "run.evaluate_steps=0", "data.batch_size=4", "data.val_batch_size=2", "data.options={size = 64, count = 10}",
    "data.image_size=64", "optim.warmup_steps=0", "optim.ema=0.9", "optim.name=sgd", "optim.lr=0.01", "steps=4",
]  # fmt: skip


def recipe(*changes):
    loaded = load(list_recipes()["shapes-detr"], [*RUN, *changes])
    model = loaded.model.model_copy(update={"head_options": HEAD, "options": BACKBONE, "drop_path": 0.1})
    return loaded.model_copy(update={"model": model})


def run(rank, port, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    train(recipe(), folder / "ranks", reporters=[])


def on_two_ranks(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run, args=(rank, port, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0


def last(folder):
    return read(folder / "last.safetensors")[0]


@pytest.mark.slow
def test_ranks_and_micro_batches_change_no_run_and_cuts_change_no_bit(tmp_path):
    train(recipe(), tmp_path / "whole", reporters=[])
    want = last(tmp_path / "whole")
    found = json.loads((tmp_path / "whole" / "evaluation.json").read_text())["pictures"]
    assert all(len(picture["steps"]) == 3 for picture in found)
    train(recipe("run.accumulate=2"), tmp_path / "micros", reporters=[])
    on_two_ranks(tmp_path)
    for name in ("micros", "ranks"):
        got = last(tmp_path / name)
        assert got.keys() == want.keys()
        for key, tensor in want.items():
            torch.testing.assert_close(got[key], tensor, rtol=1e-3, atol=2e-5, msg=f"{name}: {key}")
    for cut in (1, 2, 3):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        for name in ("last.safetensors", "best.safetensors"):
            (folder / name).unlink()
        for step in (folder / "checkpoints").glob("step_*"):
            if int(step.name.removeprefix("step_")) > cut:
                shutil.rmtree(step)
        train(resume=folder, reporters=[])
        got = last(folder)
        assert all(torch.equal(got[key], tensor) for key, tensor in want.items())


def test_boxes_are_shown_over_the_layers():
    model, batch = detector().eval(), drawings(2)
    with torch.no_grad():
        plain = model.detect(batch.images, output_sizes=[[128, 64], [64, 64]])
        found = model.detect(batch.images, output_sizes=[[128, 64], [64, 64]], steps=True)
    for one, other in zip(found, plain, strict=True):
        assert other.steps is None
        assert one.steps.shape == (3, len(one.boxes), 4)  # the proposals, two layers
        assert torch.equal(one.steps[-1], one.boxes)
    retinanet = create_detector("gcvit_xxtiny", head="retinanet", head_options={"width": 8}, **BACKBONE)
    assert retinanet.eval().detect(batch.images, steps=True)[0].steps is None
