"""What contenders are built of."""

import time
from typing import ClassVar

import pytest
import torch

from tetravit.benchmark import contenders
from tetravit.benchmark.contenders import CONTENDERS, OURS, TRAINING, Task
from tetravit.benchmark.memory import Peaks


@pytest.mark.parametrize("faster", ["eager", "compile"])
def test_torch_alone_keeps_the_faster_of_its_two_ways(monkeypatch, faster):
    built, calls = [], []

    def optimize(model, dtype, backend, example):
        built.append((backend, dtype, model.training))

        def run(images):
            calls.append(backend)
            time.sleep(0.0 if backend == faster else 0.01)

        return run

    monkeypatch.setattr(contenders, "optimize", optimize)
    monkeypatch.setattr(contenders, "CHOICE_S", 0.02)
    task = Task("xcit_nano_12_p16", "torch", 32, 1, "bfloat16", "predict", "cpu", 1)
    call = CONTENDERS["torch"](task, torch.zeros(1, 3, 32, 32))
    assert built == [("eager", torch.bfloat16, False), ("compile", torch.bfloat16, False)]
    calls.clear()
    call()
    assert calls == [faster]


def test_a_step_changes_the_weights_and_training_alone_does_not(monkeypatch):
    kept = []
    create_model = contenders.create_model

    def create(name, **options):
        kept.append(create_model(name, depth=1, **options))
        return kept[-1]

    monkeypatch.setattr(contenders, "create_model", create)
    images = torch.randn(2, 3, 32, 32)
    for mode, moved in (("train", False), ("step", True)):
        call = CONTENDERS["plain"](
            Task("xcit_nano_12_p16", "plain", 32, 2, "float32", mode, "cpu", 1), images
        )
        before = kept[-1].head.weight.clone()
        call()
        assert torch.equal(kept[-1].head.weight, before) is not moved
        assert kept[-1].training
        assert all(parameter.grad is None for parameter in kept[-1].parameters())


def test_openvino_says_in_what_it_computes():
    task = Task("xcit_nano_12_p16", "openvino", 32, 1, "float16", "predict", "cpu", 1)
    with pytest.raises(ValueError) as caught:
        CONTENDERS["openvino"](task, torch.zeros(1, 3, 32, 32))
    assert str(caught.value) == "openvino computes in one of float32, bfloat16; got 'float16'."


def test_every_contender_is_listed():
    assert set(OURS) | {"timm", "compile", "onnxruntime", "openvino"} == set(CONTENDERS)
    assert set(TRAINING) < set(CONTENDERS)


@pytest.mark.parametrize("contender", ["plain", "timm"])
def test_no_norm_and_no_bias_of_a_contender_is_one_that_a_program_leaves_out(monkeypatch, contender):
    kept = []
    monkeypatch.setattr(contenders, "_stepping", lambda model, *_: kept.append(model))
    task = Task("xcit_nano_12_p16", contender, 32, 1, "float32", "predict", "cpu", 1)
    CONTENDERS[contender](task, torch.zeros(1, 3, 32, 32))
    vectors = [p for p in kept[0].parameters() if p.numel() == max(p.shape)]
    assert any(p.shape == (4, 1, 1) for p in vectors)  # temperatures
    assert all((p != 0).all() and (p != 1).all() for p in vectors)


def test_the_first_call_of_a_round_does_not_count(monkeypatch):
    asked = []
    monkeypatch.setattr(contenders, "_stepping", lambda *_: lambda: None)
    monkeypatch.setattr(contenders, "peaks", lambda call, device: Peaks(1.0, 200.0))
    monkeypatch.setattr(
        contenders, "_times", lambda call, device, seconds: asked.append(seconds) or [len(asked)]
    )

    class Line:
        sent: ClassVar = []
        asked: ClassVar = [0.1, 0.2, None]

        def send(self, found):
            self.sent.append(found)

        def recv(self):
            return self.asked.pop(0)

    contenders.serve(Task("xcit_nano_12_p16", "plain", 32, 1, "float32", "predict", "cpu", 1), Line())
    assert asked == [0, 0.1, 0, 0.2]  # one call in front of each round
    ready, *rounds = Line.sent
    assert (ready.peak_mib, ready.process_mib) == (1.0, 200.0)
    assert [(one.times, one.how) for one in rounds] == [([2], "eager, 1 thread"), ([4], "eager, 1 thread")]
