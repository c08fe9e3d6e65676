"""Class activation maps equal those of pytorch-grad-cam, before it scales and enlarges them."""

import pytest
import torch

from tetravit.explainers import EXPLAIN
from tetravit.explainers.base import Request
from tetravit.models import create_model

theirs = pytest.importorskip("pytorch_grad_cam")
MODELS = {
    "xcit_nano_12_p16": ({"depth": 2}, "blocks.1"),
    "convit_tiny": ({"depth": 3, "num_gpsa": 2, "image_size": 64}, "blocks.2.norm1"),
    "gcvit_xxtiny": (
        {"depths": (2, 2, 2, 2), "image_size": 64, "dim": 16, "num_heads": (1, 1, 2, 2)},
        "norm",
    ),
    "twins_svt_small": (
        {"dims": (16, 16, 32, 32), "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)},
        "norm",
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "LayerCAM"])
def test_raw_maps_are_equal(name, method):
    torch.manual_seed(0)
    options, layer = MODELS[name]
    model = create_model(name, num_classes=4, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    images = torch.randn(1, 3, 64, 96)
    (ours,) = EXPLAIN[method.lower()].run(model, images, Request(class_=2))
    assert ours.layer == layer
    rows, columns = ours.grid

    def as_map(x):  # tokens (B, T + N, C) or maps (B, H, W, C)
        x = x[:, -rows * columns :].unflatten(1, (rows, columns)) if x.ndim == 3 else x
        return x.permute(0, 3, 1, 2)

    module = model.backbone.get_submodule(layer)
    cam = getattr(theirs, method)(model, [module], reshape_transform=as_map)
    outputs = cam.activations_and_grads(images)
    outputs[0, 2].backward()
    kept = [
        x[0].detach().numpy()
        for x in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
    ]
    raw = cam.get_cam_image(images, module, None, *kept, False)[0]
    torch.testing.assert_close(ours.values, torch.from_numpy(raw).relu(), atol=1e-6, rtol=1e-3)
