"""captum on these models: Grad-CAM against our own, integrated gradients by their completeness."""

import pytest
import torch
from tests.bridges.test_grad_cam import SIZE, SMALL

import tetravit
from tetravit.bridges.captum import WithMaps
from tetravit.explainers import EXPLAIN
from tetravit.explainers.base import Request


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(0)
    return tetravit.create_model(request.param, num_classes=4, **SMALL[request.param]).eval()


def test_maps_of_captum_are_ours(model):
    attr = pytest.importorskip("captum.attr")
    images = torch.randn(1, 3, *SIZE)
    (ours,) = EXPLAIN["gradcam"].run(model, images, Request(class_=2))
    view = WithMaps(model)
    cam = attr.LayerGradCam(view, view.maps).attribute(images, target=2, relu_attributions=True)
    assert cam.shape == (1, 1, *ours.grid)
    torch.testing.assert_close(cam[0, 0].detach(), ours.values, atol=1e-6, rtol=1e-3)
    several = attr.LayerGradCam(view, view.maps).attribute(images.repeat(2, 1, 1, 1), target=[2, 2])
    torch.testing.assert_close(several[1, 0].relu().detach(), ours.values, atol=1e-6, rtol=1e-3)


def test_outputs_are_those_of_the_model(model):
    images = torch.randn(2, 3, *SIZE)
    view = WithMaps(model)
    torch.testing.assert_close(view(images), model(images))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.slow
def test_integrated_gradients_are_complete(model):
    attr = pytest.importorskip("captum.attr")
    images = 0.2 * torch.randn(1, 3, *SIZE)
    shares, rest = attr.IntegratedGradients(model).attribute(
        images, target=1, n_steps=32, internal_batch_size=32, return_convergence_delta=True
    )
    with torch.no_grad():
        change = model(images)[0, 1] - model(torch.zeros_like(images))[0, 1]
    assert shares.shape == images.shape
    assert rest.abs().item() < 0.05 * max(change.abs().item(), shares.abs().sum().item())


def test_other_kinds_of_models_are_pointed_to_explain():
    segmenter = tetravit.create_segmenter("twins_svt_small", head="semantic_fpn", num_classes=2)
    with pytest.raises(
        ValueError, match=r"^cam_target is for classifiers; got a Segmenter. tetravit.explain"
    ):
        WithMaps(segmenter)
