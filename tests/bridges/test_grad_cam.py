"""pytorch-grad-cam and captum on these models, against our own maps."""

import pytest
import torch

import tetravit
from tetravit.bridges.grad_cam import cam_target
from tetravit.explainers import EXPLAIN
from tetravit.explainers.base import Request

SIZE = (64, 96)
SMALL = {
    "xcit_nano_12_p16": {"depth": 2},
    "convit_tiny": {"depth": 3, "num_gpsa": 2, "image_size": SIZE},
    "gcvit_xxtiny": {"depths": (2, 1, 1, 1)},
    "twins_svt_small": {"depths": (1, 1, 1, 1)},
    "deit_tiny": {"depth": 2, "image_size": SIZE},
}


@pytest.mark.parametrize("name", SMALL)
def test_maps_of_pytorch_grad_cam_are_ours(name):
    theirs = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    torch.manual_seed(0)
    model = tetravit.create_model(name, num_classes=4, **SMALL[name]).eval()
    images = torch.randn(1, 3, *SIZE)
    (ours,) = EXPLAIN["gradcam"].run(model, images, Request(class_=2))
    layer, reshape = cam_target(model, SIZE)
    cam = theirs.GradCAM(model, [layer], reshape_transform=reshape)
    cam(images, [targets.ClassifierOutputTarget(2)])
    kept = cam.activations_and_grads
    (activations,), (gradients,) = kept.activations, kept.gradients
    assert activations.shape[2:] == ours.grid
    raw = (gradients.mean((2, 3), keepdim=True) * activations).sum(1)[0].relu()
    torch.testing.assert_close(ours.values, raw.float(), atol=1e-6, rtol=1e-3)


def test_other_models_are_pointed_to_explain():
    segmenter = tetravit.create_segmenter("twins_svt_small", head="semantic_fpn", num_classes=2)
    with pytest.raises(ValueError) as error:
        cam_target(segmenter)
    assert str(error.value) == (
        "cam_target is for classifiers; got a Segmenter. tetravit.explain(model, image,"
        ' method="gradcam") explains segmenters and detectors.'
    )
