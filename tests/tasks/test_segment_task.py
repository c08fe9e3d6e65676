"""The segmentation task: its loss, its scores, what it says about labels that are no class."""

import base64
import io
import json
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from task_toys import START, data_section, described, scored
from torch import nn

from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS, Dataset
from tetravit.data.evaluation import EvalLoader, make_eval_loader
from tetravit.data.preprocess import eval_transform, preprocess, scaled
from tetravit.engine.optim import OptimConfig
from tetravit.engine.profiling import profile_step
from tetravit.models import create_segmenter
from tetravit.models.inference import segment
from tetravit.protocols.miou import HARDEST, MIoUConfig, encoded, predictions
from tetravit.structures import Batch, Preprocess, Sample
from tetravit.tasks import TASKS

K = 9
INFO = described(K, "segment")
TINY = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


def task():
    torch.manual_seed(0)
    row = TASKS["segment"]
    head = {"width": 8, "auxiliary": 0.4}
    model = row.create("twins_svt_small", data=INFO, head_options=head, **TINY)
    return row(model, row.Config(name="segment"), INFO)


class Oracle(nn.Module):
    """Says what the red channel says; `wrong` pixels at the left say class 0."""

    num_classes = K

    def __init__(self, wrong=0):
        super().__init__()
        self.weight, self.wrong = nn.Parameter(torch.zeros(1)), wrong

    def forward(self, images):
        labels = images[:, 0].round().long().clamp(0, K - 1)
        labels[:, :, : self.wrong] = 0
        return nn.functional.one_hot(labels, K).movedim(3, 1).float() * 9


def unpacked(scores):
    return scores.values, scores.findings


def judge(model):
    row = TASKS["segment"]
    return row(model, row.Config(name="segment"), INFO).eval()


def batch(labels, sizes=None, names=("a", "b")):
    """Images whose red channel is their label."""
    images = torch.stack([torch.stack([x.float().clamp(0, K - 1)] * 3) for x in labels])
    targets = labels if sizes is None else [x[:h, :w] for x, (h, w) in zip(labels, sizes, strict=True)]
    return Batch(images, targets, None if sizes is None else torch.tensor(sizes), list(names), [0, 1])


def test_a_step_is_the_sum_of_the_losses_of_the_head():
    found = task()
    made = found.example(2, 64)
    torch.manual_seed(1)
    step = found.step(made, START)
    torch.manual_seed(1)
    losses = found.model.loss(made.images, made.targets)
    assert set(step) == {"loss", "loss_class", "loss_auxiliary"}
    assert step["loss"].item() == pytest.approx(sum(x.item() for x in losses.values()))
    assert not step["loss_class"].requires_grad
    step["loss"].backward()
    assert all(
        p.grad is not None
        for n, p in found.model.named_parameters()
        if "backbone.norm" not in n and p.requires_grad
    )


def test_one_image_at_a_time_is_too_few_for_pooled_norms():
    text = "This head trains on 2 images or more at a time on each device; got 1: raise data.batch_size."
    found = task()
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        found.step(found.example(1, 64), START)
    with pytest.raises(ValueError, match=r"^labels must be integers"):
        found.step(Batch(torch.zeros(2, 3, 64, 64), torch.zeros(2, 60, 64).long()), START)


def test_one_image_on_each_of_several_ranks_is_rehearsed_as_two(monkeypatch):
    """Their norms share statistics; who rehearses is alone."""

    def rehearsed():
        cpu, settings = torch.device("cpu"), OptimConfig(name="adamw", lr=1e-3)
        return profile_step(task(), images=1, size=64, precision="fp32", device=cpu, settings=settings)

    with pytest.raises(ValueError, match=r"^This head trains on 2 images or more at a time on each device"):
        rehearsed()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    found = rehearsed()
    assert found.images == 2
    assert found.memory_mib(1) == pytest.approx(found.fixed_mib + found.kept_mib / 2)


def test_labels_that_are_no_class_are_left_out_and_told_once(caplog):
    found, made = task().eval(), task().example(2, 64)
    made.names = ["a.png", "b.png"]
    made.targets[1, :2] = 200
    clean = made.targets.clone()
    clean[1, :2] = 255
    with caplog.at_level(logging.WARNING):
        got = found.step(made, START)["loss"]
        found.step(made, START)
    made.targets = clean
    assert torch.equal(got, found.step(made, START)["loss"])
    assert [r.getMessage() for r in caplog.records] == [
        "b.png: in a crop, 128 pixels have labels that are neither 0 to 8 nor 255; they are left out."
    ]


def test_scores_come_from_the_totals_of_all_images():
    labels = torch.arange(K).repeat_interleave(8).repeat(2, 16, 1).to(torch.uint8)  # (2, 16, 72)
    found = judge(Oracle(wrong=20))
    with torch.no_grad():
        scores, findings = unpacked(scored(found, [batch(labels), batch(labels)]))
    right = [1.0, 0.0, 0.5, *[1.0] * 6]
    assert scores["macc"] == pytest.approx(np.mean(right))
    assert scores["aacc"] == pytest.approx(1 - 12 / 72)
    assert scores["miou"] == pytest.approx(np.mean([8 / 20, *right[1:]]))
    assert findings["count"] == 4
    assert findings["iou"][:3] == [0.4, 0.0, 0.5]
    assert findings["pixels"] == [4 * 16 * 8] * K
    assert findings["unknown"] == {}
    json.dumps(findings, allow_nan=False)


def test_padding_is_not_looked_at():
    labels = torch.randint(1, K, (2, 40, 64)).to(torch.uint8)
    sizes = [(40, 33), (32, 64)]
    seen = []

    class Seeing(Oracle):
        def forward(self, images):
            seen.append(tuple(images.shape))
            return super().forward(images)

    with torch.no_grad():
        scores = scored(judge(Seeing()), [batch(labels, sizes)]).values
    assert scores == {"miou": 1.0, "macc": 1.0, "aacc": 1.0}
    assert seen == [(1, 3, 40, 33), (1, 3, 32, 64)]


def test_files_with_labels_that_are_no_class_are_in_the_findings():
    labels = torch.ones(2, 32, 32, dtype=torch.uint8)
    labels[1, 0, :5] = 77
    labels[1, 1, :5] = 255
    found = judge(Oracle())
    with torch.no_grad():
        scores, findings = unpacked(scored(found, [batch(labels)]))
    assert scores["aacc"] == 1.0
    assert findings["unknown"] == {"b": 5}
    assert findings["iou"] == [None, 1.0, *[None] * 7]


def test_the_hardest_images_are_kept_with_their_maps():
    found = judge(Oracle(wrong=8))
    batches = []
    for i in range(12):
        labels = torch.full((1, 32, 32), i % K, dtype=torch.uint8)
        labels[:, :, i:] = 0
        made = batch(labels, names=[f"n{i:02}"])
        made.indices = [i]
        batches.append(made)
    with torch.no_grad():
        findings = scored(found, batches).findings
    pictures = findings["pictures"]
    assert [p["index"] for p in pictures["first"]] == [0, 1, 2, 3, 4, 5]
    hardest = pictures["hardest"]
    assert len(hardest) == HARDEST
    shares = [p["accuracy"] for p in hardest]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 - 8 / 32)
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(hardest[0]["map"]))))
    assert shown.shape == (32, 32)
    assert not shown[:, :8].any()


def test_maps_for_a_report_are_small():
    shown = Image.open(io.BytesIO(base64.b64decode(encoded(torch.zeros(600, 1000).long()))))
    assert shown.size == (250, 150)


def test_windows_scales_and_flips_reach_the_answers():
    labels = torch.randint(0, K, (2, 64, 96)).to(torch.uint8)
    calls = []

    class Counting(Oracle):
        def forward(self, images):
            calls.append(tuple(images.shape))
            return super().forward(images)

    with torch.no_grad():
        scored(judge(Counting()), [batch(labels)], window=64, stride=32, windows_at_once=8, flip=True)
    assert calls == [(4, 3, 64, 64)] * 2


def test_a_set_is_scored_through_the_loader():
    dataset = DATASETS["shapes_seg"](None, "val", size=64, count=3)
    transform = eval_transform(Preprocess(size=64, mode="fit", interpolation="bilinear"))
    found = task().eval()
    with torch.no_grad():
        scores, findings = unpacked(scored(found, EvalLoader(dataset, transform, batch_size=2)))
    assert set(scores) == {"miou", "macc", "aacc"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert findings["count"] == 3
    assert findings["pictures"]["first"][2]["name"] == "shapes_seg/val/2"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_scale_is_made_from_the_original_and_looked_at(batch_size):
    """Images of several sizes, alone and filled up beside others: the same label maps as by hand."""
    sizes, scales = [(70, 101), (90, 64), (70, 101)], (0.5, 1.0, 1.5)
    dataset = Pictures(sizes)
    p = Preprocess(size=64, longest=96, mode="fit", interpolation="bilinear")
    first, *more = (eval_transform(scaled(p, scale)) for scale in scales)
    found, maps, config = task().eval(), [], MIoUConfig(scales=scales, flip=True)
    with torch.no_grad():
        for batch in EvalLoader(dataset, first, more=more, batch_size=batch_size):
            assert [len(view) for view in batch.views] == [len(batch)] * 2
            maps += [answer for answer, _ in predictions(found.model, batch, config.inference)]
        for i, (got, size) in enumerate(zip(maps, sizes, strict=True)):
            views = [preprocess(dataset[i].image, scaled(p, scale))[None] for scale in scales]
            (want,) = segment(found.model, views, [size], config.inference)
            assert (got != want).float().mean() < 1e-3  # ties
    data = DataConfig(
        name="shapes_seg", batch_size=1, image_size=64, options={"size": 96}, mode="fit", workers=0
    )
    assert config.eval_scales() == scales
    batch = next(iter(make_eval_loader(data, scales=config.eval_scales())))
    assert [tuple(x.images.shape[2:]) for x in (batch, *batch.views)] == [(32, 32), (64, 64), (96, 96)]


class Pictures(Dataset):
    """Noise of the given sizes, and its labels."""

    num_classes, class_names = K, tuple("abcdefghi")

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        image = torch.randint(256, (3, *self.sizes[i]), dtype=torch.uint8, generator=draw)
        labels = torch.randint(K, self.sizes[i], dtype=torch.uint8, generator=draw)
        return Sample(image, labels, str(i))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match=r"^The set to score on is empty\.$"):
        scored(judge(Oracle()), [])


def test_images_without_a_labelled_pixel_have_no_accuracy():
    labels = torch.ones(2, 32, 32, dtype=torch.uint8)
    labels[0] = 255
    found = judge(Oracle())
    with torch.no_grad():
        findings = scored(found, [batch(labels)]).findings
    pictures = findings["pictures"]
    assert [p["accuracy"] for p in pictures["first"]] == [None, 1.0]
    assert [p["name"] for p in pictures["hardest"]] == ["b"]
    json.dumps(findings, allow_nan=False)


def test_a_set_without_a_labelled_pixel_is_refused():
    labels = torch.full((2, 32, 32), 255, dtype=torch.uint8)
    labels[0, 0] = 99  # no class either
    with torch.no_grad(), pytest.raises(ValueError, match=r"^No pixel of the set has a class\.$"):
        scored(judge(Oracle()), [batch(labels)])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"num_classes": 3}, "The model has 9 classes; the data has 3."),
        ({"mix": "mixup(0.8)"}, "The task 'segment' mixes no images; got data.mix='mixup(0.8)'."),
    ],
)
def test_what_does_not_go_together(given, text):
    row = TASKS["segment"]

    def make():
        made = row(Oracle(), row.Config(name="segment"), described(given.get("num_classes", K), "segment"))
        made.prepare(data_section(given.get("mix", "")))

    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make()


def test_one_pixel_is_enlarged_and_answered_at_its_size():
    pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
    x = eval_transform(Preprocess(size=64, longest=256, mode="fit", interpolation="bilinear"))(pixel)
    assert x.shape == (3, 64, 64)
    found = task().eval()
    with torch.no_grad():
        (said,) = found.model.segment(x[None], [(1, 1)])
        for label in (int(said), (int(said) + 1) % K):
            made = Batch(x[None], [torch.full((1, 1), label).to(torch.uint8)], None, ["p"], [0])
            right = float(label == int(said))
            assert scored(found, [made]).values == {"miou": right, "macc": right, "aacc": right}


def test_the_task_builds_the_models_of_its_head():
    model = TASKS["segment"].create("twins_svt_small", data=INFO, head="semantic_fpn", **TINY)
    assert (model.head_name, model.num_classes) == ("semantic_fpn", K)
    assert type(model) is type(create_segmenter("twins_svt_small", num_classes=K, **TINY))
