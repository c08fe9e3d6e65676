"""torchvision's operators without its Python."""

import subprocess
import sys

import pytest
import torch
from torchvision import ops

from tetravit.kernels import vision

PROGRAM = """
import sys, torch
from tetravit.kernels import vision
torch.manual_seed(0)
corners = torch.rand(60, 2) * 30
boxes = torch.cat((corners, corners + 5 + torch.rand(60, 2) * 20), dim=1)
maps, regions = torch.rand(1, 4, 32, 32), torch.cat((torch.zeros(60, 1), boxes), dim=1)
with torch.inference_mode():
    kept = vision.nms(boxes, torch.rand(60), 0.5)
    pooled = vision.roi_align(maps, regions, 7, 0.5)
assert "torchvision" not in sys.modules
print(kept.tolist(), float(pooled.double().sum()))
"""


@pytest.mark.slow
def test_the_operators_are_torchvisions_and_its_python_is_not_loaded():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 30
    boxes = torch.cat((corners, corners + 5 + torch.rand(60, 2) * 20), dim=1)
    maps, regions = torch.rand(1, 4, 32, 32), torch.cat((torch.zeros(60, 1), boxes), dim=1)
    kept = ops.nms(boxes, torch.rand(60), 0.5)
    pooled = ops.roi_align(maps, regions, 7, 0.5, sampling_ratio=-1, aligned=True)
    assert done.stdout.strip() == f"{kept.tolist()} {float(pooled.double().sum())}"


def test_gradients_reach_the_maps():
    maps = torch.rand(1, 2, 16, 16, requires_grad=True)
    vision.roi_align(maps, torch.tensor([[0.0, 2, 2, 20, 20]]), 7, 0.5).sum().backward()
    assert maps.grad is not None
    assert maps.grad.any()
