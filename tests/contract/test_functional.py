"""torch.func, gradients of gradients, forward mode and tensors without values work on every family.

PyTorch's fused attention has no second derivative and no forward mode on a CPU: `sdpa_kernel(SDPBackend.MATH)`
chooses the form that has both.
"""

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tetravit.models import create_model

FEW = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2)}
MODELS = {
    "convit_tiny": {"depth": 3, "num_gpsa": 2, "dim": 32},
    "deit_tiny": {"depth": 3, "dim": 48},
    "gcvit_xxtiny": {"dim": 16, "window_size": (3, 3, 3, 3), **FEW},
    "twins_svt_small": {"dims": (16, 16, 32, 32), "window_size": 3, **FEW},
    "xcit_nano_12_p16": {"depth": 3, "dim": 32},
}


@pytest.fixture(scope="module", params=MODELS)
def small(request):
    torch.manual_seed(0)
    return create_model(request.param, num_classes=5, **MODELS[request.param]).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 32)


@pytest.mark.slow
def test_gradients_per_sample_are_those_of_each_image_alone(small, images):
    parameters = {n: p.detach() for n, p in small.named_parameters()}

    def loss(parameters, image):
        return functional_call(small, parameters, (image[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    for i, image in enumerate(images):
        alone = copy.deepcopy(small)
        alone(image[None]).square().sum().backward()
        for name, p in alone.named_parameters():
            torch.testing.assert_close(each[name][i], p.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_of_gradients_are_those_of_the_plain_forms(small, images, mode):
    """In float32 the fused forms of training are taken, in float64 none is."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model = copy.deepcopy(small).train(mode == "train").to(dtype)
        given = images.to(dtype).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            (first,) = torch.autograd.grad(model(given).square().sum(), given, create_graph=True)
            first.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        scale = float(expected.abs().max()) + 1e-6
        torch.testing.assert_close(gradients[0][name].double(), expected, atol=2e-3 * scale, rtol=0)


def test_forward_mode_is_the_slope(small, images):
    direction, step = torch.randn_like(images), 1e-4
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = jvp(small, (images,), (direction,))
    exact = copy.deepcopy(small).double()
    with torch.no_grad():
        ends = [exact(images.double() + sign * step * direction.double()) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(slope.double(), expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_values_is_built_and_run(name):
    with FakeTensorMode():
        model = create_model(name, num_classes=5, **MODELS[name])
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        with torch.no_grad():
            assert model.eval()(torch.randn(2, 3, 64, 96)).shape == (2, 5)
