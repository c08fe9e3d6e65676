"""The feature pyramid: torchvision's tensors, draws and numbers, without importing torchvision."""

import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from tetravit.heads.parts.fpn import FPN


def test_it_is_the_pyramid_of_torchvision_to_the_bit():
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork([4, 6, 8], 16)
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    following = torch.rand(1)
    torch.manual_seed(0)
    ours = FPN([4, 6, 8], 16)
    assert torch.equal(torch.rand(1), following)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    maps = [torch.rand(2, c, side, side + 1) for c, side in ((4, 13), (6, 7), (8, 4))]
    expected = theirs(OrderedDict(zip("abc", maps, strict=True))).values()
    assert all(torch.equal(x, y) for x, y in zip(ours(maps), expected, strict=True))


@pytest.mark.slow
def test_models_of_every_kind_are_built_without_torchvision_and_dynamo():
    code = (
        "import sys, tetravit.models as m;"
        "m.create_model('xcit_nano_12_p16');"
        "m.create_detector('xcit_nano_12_p16', head='mask_rcnn', num_classes=3);"
        "print([name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
