"""Projections come in heads, by one product or, in exported programs, by one each: the same numbers."""

import pytest
import torch
from torch import nn

from tetravit.layers.heads import to_heads


class Parts(nn.Module):
    def __init__(self, layer, parts):
        super().__init__()
        self.layer, self.parts = layer, parts

    def forward(self, x):
        return to_heads(x, self.layer, self.parts, 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_parts_are_those_of_the_whole_product(parts, bias):
    layer, x = nn.Linear(6, parts * 8, bias=bias), torch.randn(2, 5, 6)
    whole = layer(x).view(2, 5, parts, 2, 4)
    found = to_heads(x, layer, parts, 2)
    program = torch.export.export(Parts(layer, parts), (x,))
    exported = program.module()(x)
    assert len(found) == len(exported) == parts
    for i in range(parts):
        for part in (found[i], exported[i]):
            assert part.shape == (2, 2, 5, 4)
            torch.testing.assert_close(part, whole[:, :, i].transpose(1, 2))


def test_an_exported_program_has_a_product_for_each_part():
    program = torch.export.export(Parts(nn.Linear(6, 24), 3), (torch.randn(2, 5, 6),))
    products = [node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(products) == 3


def test_a_layer_that_someone_listens_to_is_called_in_an_exported_program_too():
    layer, x = nn.Linear(6, 24), torch.randn(2, 5, 6)
    layer.register_forward_hook(lambda module, given, answer: answer + 1)
    exported = torch.export.export(Parts(layer, 3), (x,)).module()(x)
    for found, wanted in zip(exported, heads_of(layer(x)), strict=True):
        torch.testing.assert_close(found, wanted)


def heads_of(whole):
    return whole.view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind()
