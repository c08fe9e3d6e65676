"""The two linear layers give the same whole and in parts."""

import pytest
import torch

from tetravit.layers import mlp
from tetravit.layers.mlp import Mlp


@pytest.mark.parametrize("shape", [(2, 50, 8), (3, 4, 5, 8), (1, 1, 8), (0, 5, 8), (7, 8)], ids=str)
def test_parts_give_what_the_whole_gives(shape, monkeypatch):
    monkeypatch.setattr(mlp, "PART", 3 * 32)  # three tokens at a time
    layer, x = Mlp(8, 32), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.whole(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer(x), layer.whole(x), atol=0, rtol=0)


def test_evaluation_never_holds_all_hidden_features(monkeypatch):
    monkeypatch.setattr(mlp, "PART", 64)
    layer, seen = Mlp(8, 32), []
    layer.fc1.register_forward_hook(lambda _module, _inputs, hidden: seen.append(hidden.numel()))
    layer(torch.randn(50, 8))
    assert seen == [50 * 32]  # while gradients are recorded they are needed anyway
    seen.clear()
    with torch.no_grad():
        layer(torch.randn(50, 8))
    assert max(seen) <= 64 * torch.get_num_threads()
    assert sum(seen) == 50 * 32
