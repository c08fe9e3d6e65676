"""Rules rename, split and reshape in both directions."""

import pytest
import torch

from tetravit.weights import LAYOUTS
from tetravit.weights.base import KeyMap, Rule

MAP = KeyMap(
    Rule("a.{i}.qkv.{p}", {"b.{i}.q.{p}": 1, "b.{i}.kv.{p}": 2}),
    Rule("se.{i}.{rest}", "gate.{i}.{rest}", kernel="theirs"),
    Rule({"x.k.{p}": 1, "x.v.{p}": 1}, "y.kv.{p}"),
    Rule("a.{i}.{rest}", "b.{i}.{rest}"),
    dropped=(r".*\.index",),
)


def test_both_directions_give_the_same_tensors():
    theirs = {
        "a.0.qkv.weight": torch.randn(6, 4),
        "a.0.qkv.bias": torch.randn(6),
        "a.11.norm.weight": torch.randn(4),
        "se.0.fc.weight": torch.randn(2, 4, 1, 1),
        "x.k.weight": torch.randn(3, 4),
        "x.v.weight": torch.randn(3, 4),
        "other": torch.randn(1),
    }
    ours = MAP.to_ours({**theirs, "a.0.index": torch.zeros(2)})
    assert ours.keys() == {
        "b.0.q.weight",
        "b.0.kv.weight",
        "b.0.q.bias",
        "b.0.kv.bias",
        "b.11.norm.weight",
        "gate.0.fc.weight",
        "y.kv.weight",
        "other",
    }
    assert torch.equal(ours["b.0.kv.weight"], theirs["a.0.qkv.weight"][2:])
    assert ours["gate.0.fc.weight"].shape == (2, 4)
    back = MAP.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def test_parts_are_found_in_any_order():
    ours = {"b.3.kv.bias": torch.arange(4.0), "b.3.q.bias": torch.tensor([9.0, 8.0])}
    assert torch.equal(MAP.to_theirs(ours)["a.3.qkv.bias"], torch.tensor([9.0, 8.0, 0, 1, 2, 3]))


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_family_names_the_authors_and_timms_layout(family):
    assert {"official", "timm"} <= LAYOUTS[family].keys()
