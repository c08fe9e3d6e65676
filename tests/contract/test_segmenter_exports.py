"""A segmenter of every family leaves Python as one program for all batches and sizes."""

import pytest
import torch
from tests.toys import TOYS
from torch import nn
from torch.export import Dim

from tetravit.backbones import VARIANTS
from tetravit.models import create_segmenter, family

SIZES = [(1, 3, 64, 64), (3, 3, 101, 150), (2, 3, 224, 95)]


def test_every_family_is_here():
    assert {family(name) for name in TOYS} == {family(name) for name in VARIANTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_one_exported_segmenter_serves_every_batch_and_size(name):
    torch.manual_seed(0)
    model = create_segmenter(name, num_classes=5, head_options={"width": 8}, **TOYS[name]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
    sides = {axis: Dim(side, min=64, max=1024) for axis, side in ((2, "height"), (3, "width"))}
    shapes = ({0: Dim("batch", min=1, max=8), **sides},)
    program = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=shapes).module()
    for size in SIZES:
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(program(images), model(images), atol=1e-4, rtol=0)
