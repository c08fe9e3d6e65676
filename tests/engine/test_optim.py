"""Which parameters decay, how fast each depth learns, what the schedule says."""

import copy
import math

import pytest
import torch
from torch import nn

from tetravit.engine import optim
from tetravit.engine.ema import Ema
from tetravit.engine.optim import OptimConfig
from tetravit.engine.schedule import warmup_cosine
from tetravit.models import create_model


@pytest.fixture(scope="module")
def model():
    return create_model("xcit_nano_12_p16", num_classes=3, depth=2)


def by_name(model, config):
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: g for g in optim.groups(model, config) for p in g["params"]}


def test_only_matrices_and_kernels_decay(model):
    found = by_name(model, OptimConfig(weight_decay=0.3))
    assert set(found) == {n for n, _ in model.named_parameters()}
    decayed = {n for n, g in found.items() if g["weight_decay"] == 0.3}
    assert decayed == {n for n, p in model.named_parameters() if n.endswith(".weight") and p.ndim > 1}
    assert "backbone.blocks.0.attn.temperature" not in decayed
    assert "backbone.cls_token" not in decayed


def test_the_authors_also_decay_the_temperature(model):
    found = by_name(model, OptimConfig(weight_decay=0.3, decay="authors"))
    decayed = {n for n, g in found.items() if g["weight_decay"] == 0.3}
    assert "backbone.blocks.0.attn.temperature" in decayed
    assert "backbone.pos_embed.proj.weight" in decayed
    assert "backbone.cls_token" not in decayed
    assert not any(n.endswith((".bias", "gamma1", "norm1.weight")) for n in decayed)


def test_names_that_a_model_protects_are_found_inside_a_task(model):
    task = nn.Module()
    task.model = model
    found = by_name(task, OptimConfig(decay="authors"))
    assert found["model.backbone.cls_token"]["weight_decay"] == 0.0


def test_layer_decay_slows_the_early_layers(model):
    found = by_name(model, OptimConfig(layer_decay=0.5))
    scales = {n: g["scale"] for n, g in found.items()}
    assert scales["head.weight"] == 1.0
    assert scales["backbone.norm.weight"] == 0.5
    assert scales["backbone.blocks.1.mlp.fc1.weight"] == 0.25
    assert scales["backbone.blocks.0.mlp.fc1.weight"] == 0.125
    assert scales["backbone.patch_embed.0.0.weight"] == 0.0625
    assert scales["backbone.cls_token"] == 0.0625
    optimizer = optim.build(model, OptimConfig(layer_decay=0.5))
    optim.set_values(optimizer, 0.8)
    assert {g["lr"] for g in optimizer.param_groups} == {0.8, 0.4, 0.2, 0.1, 0.05}


def test_frozen_parameters_are_left_out(model):
    frozen = create_model("xcit_nano_12_p16", num_classes=3, depth=2)
    frozen.backbone.freeze(1)
    assert not any(n.startswith("backbone.patch_embed") for n in by_name(frozen, OptimConfig()))


@pytest.mark.parametrize(("lr_batch", "peak"), [(512, 1e-3), (0, 5e-4), (256, 2e-3)])
def test_the_rate_is_scaled_with_the_batch(lr_batch, peak):
    assert OptimConfig(lr=5e-4, lr_batch=lr_batch).peak(1024) == pytest.approx(peak)


def test_warm_up_then_half_a_cosine():
    def rate(step):
        return warmup_cosine(step, total=110, warmup=10, peak=1.0, start=0.1, floor=0.01)

    assert rate(0) == pytest.approx(0.1)
    assert rate(5) == pytest.approx(0.55)
    assert rate(10) == pytest.approx(1.0)
    assert rate(60) == pytest.approx(0.01 + 0.99 / 2)
    assert rate(85) == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(0.75 * math.pi)))
    assert rate(110) == rate(500) == pytest.approx(0.01)
    assert all(rate(s) >= rate(s + 1) for s in range(10, 120))


def test_a_peak_below_floor_and_start_is_never_exceeded():
    rates = [warmup_cosine(s, total=10, warmup=3, peak=1e-6, start=1e-5, floor=1e-4) for s in range(12)]
    assert rates == [1e-6] * 12


def rates(config, *, epochs, steps_per_epoch, batch_size):
    rate = config.rate(epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    return [rate(step) for step in range(epochs * steps_per_epoch)]


def test_the_faithful_rates_of_the_deit_code_move_by_epoch_and_start_late():
    """As measured on the authors' code: epochs 0 and 1 at 1e-6, the cosine from its point 5 on."""
    config = OptimConfig(lr=5e-4, faithful=True)
    found = rates(config, epochs=400, steps_per_epoch=3, batch_size=1024)
    by_epoch = found[::3]
    assert found == [r for r in by_epoch for _ in range(3)]
    rise = [1e-6 + t * (1e-3 - 1e-6) / 5 for t in range(5)]
    assert by_epoch[:6] == pytest.approx([1e-6, *rise])
    assert [f"{r:.1e}" for r in by_epoch[:7]] == [
        "1.0e-06", "1.0e-06", "2.0e-04", "4.0e-04", "6.0e-04", "8.0e-04", "1.0e-03"
    ]  # fmt: skip
    fall = [1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * t / 400)) for t in range(5, 399)]
    assert by_epoch[6:] == pytest.approx(fall)


def test_the_faithful_rates_of_deit_are_timms():
    scheduler = pytest.importorskip("timm.scheduler")
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    theirs = scheduler.CosineLRScheduler(
        optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    wanted = []
    for epoch in range(300):
        wanted.append(optimizer.param_groups[0]["lr"])
        theirs.step(epoch)  # after the epoch, with its own number
    found = rates(OptimConfig(lr=5e-4, faithful=True), epochs=300, steps_per_epoch=1, batch_size=1024)
    assert found == pytest.approx(wanted, rel=1e-12)


def test_the_faithful_rates_of_gcvit_count_the_warm_up():
    """t_initial 310 epochs, warm-up 20 inside it, then 10 epochs at min_lr; stepped after every batch."""
    scheduler = pytest.importorskip("timm.scheduler")
    per_epoch = 4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-3)
    theirs = scheduler.CosineLRScheduler(
        optimizer,
        t_initial=310 * per_epoch,
        lr_min=5e-6,
        warmup_t=20 * per_epoch,
        warmup_lr_init=1e-6,
        cycle_limit=1,
        t_in_epochs=False,
    )
    wanted = []
    for step in range(320 * per_epoch):
        wanted.append(optimizer.param_groups[0]["lr"])
        theirs.step_update(step + 1)
    config = OptimConfig(
        lr=5e-3, lr_batch=0, warmup_epochs=20, cooldown_epochs=10, min_lr=5e-6, faithful=True, release="gcvit"
    )
    found = rates(config, epochs=320, steps_per_epoch=per_epoch, batch_size=4096)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert found[80] == pytest.approx(5e-6 + 0.5 * (5e-3 - 5e-6) * (1 + math.cos(math.pi * 20 / 310)))
    assert set(found[310 * per_epoch :]) == {5e-6}


def test_a_cooldown_runs_at_the_lowest_rate():
    config = OptimConfig(lr=1.0, lr_batch=0, warmup_epochs=2, cooldown_epochs=3, min_lr=0.01)
    found = rates(config, epochs=10, steps_per_epoch=2, batch_size=8)
    assert found[4] == 1.0
    assert found[13] > 0.01
    assert set(found[14:]) == {0.01}


@pytest.mark.parametrize(
    ("release", "decays"), [("deit", False), ("convit", True), ("gcvit", False)], ids=lambda v: str(v)
)
def test_faithful_runs_decay_what_the_release_decays(release, decays):
    convit = create_model("convit_tiny", num_classes=3, image_size=32, depth=2, num_gpsa=1)
    found = by_name(convit, OptimConfig(weight_decay=0.3, faithful=True, release=release))
    decayed = {n for n, g in found.items() if g["weight_decay"] == 0.3}
    protected = {"backbone.pos_embed.table", "backbone.cls_token.token"}
    assert protected <= decayed if decays else not protected & decayed
    default = by_name(convit, OptimConfig(weight_decay=0.3, release=release))
    assert not any(default[n]["weight_decay"] for n in protected)


def test_faithful_gcvit_decays_its_bias_tables():
    gcvit = create_model("gcvit_xxtiny", num_classes=3, image_size=32)
    tables = [n for n, p in gcvit.named_parameters() if "bias" in n and p.ndim == 2 and "weight" not in n]
    assert tables
    kept = by_name(gcvit, OptimConfig(weight_decay=0.3))
    assert not any(kept[n]["weight_decay"] for n in tables)
    found = by_name(gcvit, OptimConfig(weight_decay=0.3, faithful=True, release="gcvit"))
    assert all(found[n]["weight_decay"] == 0.3 for n in tables)


@pytest.mark.parametrize("faithful", [True, False])
def test_faithful_sgd_is_nesterovs(model, faithful):
    optimizer = optim.build(model, OptimConfig(name="sgd", faithful=faithful))
    assert {g["nesterov"] for g in optimizer.param_groups} == {faithful}


@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p16", "convit_tiny", "gcvit_xxtiny", "twins_svt_small", "deit_tiny"]
)
def test_every_family_has_depths_to_slow_down(name):
    with torch.device("meta"):
        made = create_model(name, num_classes=3)
    scales = {n: g["scale"] for n, g in by_name(made, OptimConfig(layer_decay=0.5)).items()}
    count = len(made.backbone.stages())
    assert min(scales.values()) == 0.5**count
    assert scales["head.weight"] == 1.0
    assert all(s < 1 for n, s in scales.items() if n.startswith("backbone."))
    assert len(set(scales.values())) == count + 1


def test_the_average_follows_parameters_and_buffers():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.9, warmup=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(1.0)
        model.num_batches_tracked.fill_(7)
    ema.update(0)
    state = ema.state()
    torch.testing.assert_close(state["weight"], torch.full((2,), 1.1))
    torch.testing.assert_close(state["running_mean"], torch.full((2,), 0.1))
    assert state["num_batches_tracked"] == 7


def test_the_warm_up_of_the_average():
    ema = Ema(nn.Linear(1, 1), decay=0.9)
    assert [ema.at(s) for s in (0, 10, 80, 10_000)] == [0.1, 0.55, 0.9, 0.9]


def test_applied_swaps_and_puts_back_to_the_bit():
    model = nn.Linear(3, 3)
    ema = Ema(model, decay=0.5, warmup=False)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(0)
    live, averaged = model.weight.clone(), ema.state()["weight"].clone()
    storage = model.weight.data_ptr()

    def use():
        with ema.applied():
            assert torch.equal(model.weight, averaged)
            assert model.weight.data_ptr() == storage
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        use()
    assert torch.equal(model.weight, live)
    assert torch.equal(ema.state()["weight"], averaged)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_state_survives_packing(name, model):
    def step(model, optimizer):
        torch.manual_seed(1)
        optim.set_values(optimizer, 1e-2)
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    first = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
    config = OptimConfig(name=name)
    optimizer = optim.build(first, config)
    step(first, optimizer)
    second = copy.deepcopy(first)
    other = optim.build(second, config)
    packed = {k: v.clone().contiguous() for k, v in optim.pack(optimizer, first).items()}
    optim.unpack(other, second, packed)
    step(first, optimizer)
    step(second, other)
    for (n, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), n


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-6), (750, 0.5 * (1 + 1e-6)), (1500, 1.0), (40_000, 1.0)])
def test_poly_with_the_warm_up_of_the_dense_releases(step, rate):
    config = OptimConfig(lr=6e-5, lr_batch=0, schedule="poly", warmup_steps=1500, warmup_lr=6e-11, min_lr=0.0)
    got = config.rate(epochs=64, steps_per_epoch=1263, batch_size=16, total=80_000)(step)
    assert got == pytest.approx(6e-5 * rate * (1 - step / 80_000), rel=1e-12)


def test_poly_ends_at_the_floor():
    config = OptimConfig(lr=1e-4, lr_batch=0, schedule="poly", power=0.9, warmup_steps=0, min_lr=1e-6)
    rate = config.rate(epochs=1, steps_per_epoch=100, batch_size=16, total=100)
    assert rate(0) == pytest.approx(1e-4)
    assert rate(100) == pytest.approx(1e-6)
    assert rate(50) == pytest.approx(99e-6 * 0.5**0.9 + 1e-6, rel=1e-12)


def test_the_rate_falls_at_each_milestone():
    config = OptimConfig(
        lr=1e-4, lr_batch=0, schedule="steps", milestones=(8, 11), warmup_steps=500, warmup_lr=1e-7
    )
    rate = config.rate(epochs=12, steps_per_epoch=1000, batch_size=16)
    assert rate(0) == pytest.approx(1e-7)
    assert rate(500) == rate(7999) == pytest.approx(1e-4)
    assert rate(8000) == pytest.approx(1e-5)
    assert rate(11_999) == pytest.approx(1e-6)


def test_decay_of_all_but_what_is_named():
    model = nn.ModuleDict({"norm1": nn.LayerNorm(2), "fc": nn.Linear(2, 2)})
    found = optim.groups(model, OptimConfig(decay="all", no_decay=("norm",)))
    decay = {id(p): g["weight_decay"] for g in found for p in g["params"]}
    assert [decay[id(p)] for p in (*model["fc"].parameters(), *model["norm1"].parameters())] == [
        0.05,
        0.05,
        0,
        0,
    ]
