"""LARS equals the authors', and leaves bad steps out."""

import torch
from selfsup import inputs
from selfsup.answers import check

from tetravit.engine.optim import OptimConfig, build
from tetravit.engine.optimizers.lars import LARS


def groups():
    w, b, gradients = inputs.lars()
    w, b = (torch.nn.Parameter(torch.from_numpy(x)) for x in (w, b))
    return w, b, [[torch.from_numpy(g) for g in pair] for pair in gradients]


def test_three_steps():
    w, b, gradients = groups()
    optimizer = LARS([{"params": [w], "weight_decay": 0.01}, {"params": [b], "weight_decay": 0.0}], lr=0.3)
    for step, (gw, gb) in enumerate(gradients):
        w.grad, b.grad = gw, gb
        optimizer.step()
        check(f"lars_w{step}", w)
        check(f"lars_b{step}", b)


def test_a_marked_step_moves_nothing():
    w, b, ((gw, gb), *_) = groups()
    optimizer = LARS([w, b], lr=0.3)
    before = w.detach().clone()
    w.grad, b.grad = gw * float("nan"), gb
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(w, before)
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())


def test_a_norm_of_zero_is_not_divided_by():
    zero = torch.nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    LARS([zero], lr=0.5).step()
    assert zero.tolist() == [[-0.5, -0.5], [-0.5, -0.5]]


def test_it_is_on_the_menu():
    optimizer = build(torch.nn.Linear(2, 2), OptimConfig(name="lars", options={"eta": 0.01}))
    assert isinstance(optimizer, LARS)
    assert optimizer.defaults["eta"] == 0.01
