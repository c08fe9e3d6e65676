"""Graphs for one image size: the outputs of the model for every batch, and an error where an operation is unknown."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tetravit.models import create_model
from tetravit.runtimes.base import exported, prepare
from tetravit.runtimes.parts.onnx_graph import NoForm, capture, to_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SMALLER = {
    "xcit_nano_12_p16": {"depth": 2},
    "deit_tiny": {"depth": 2},
    "convit_tiny": {"depth": 3, "num_gpsa": 2},
    "gcvit_xxtiny": {"depths": (1, 1, 1, 1)},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
    "twins_pcpvt_small": {"depths": (1, 1, 1, 1)},
}


class Operations(nn.Module):
    """Operations in the forms that models use them in."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm, self.layer_norm = nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.linear, self.token = nn.Linear(8, 24), nn.Parameter(torch.randn(1, 1, 8))
        self.weights = nn.Parameter(torch.rand(8))

    def forward(self, images):
        x = F.relu(self.norm(self.conv(F.pad(images, (1, 2, 0, 1)))))
        x = F.max_pool2d(F.gelu(self.up(x)), 3, 2, 1)
        x = F.interpolate(x, size=(6, 6), mode="bilinear") + F.interpolate(x, size=(6, 6), mode="nearest")
        x = F.interpolate(x, size=(5, 7), mode="bicubic").clamp(min=-3, max=3)
        tokens = x.flatten(2).mT
        tokens = torch.cat((self.token.expand(len(x), -1, -1), self.layer_norm(tokens)), dim=1)
        q, k, v = self.linear(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(36, 36))
        y = y.transpose(1, 2).flatten(2)
        one, two = torch.lerp(tokens, y, self.weights).chunk(2, dim=2)
        y = torch.addcmul(one, two, two).softmax(-1) - torch.stack((one, two), 2).mean(2)
        lengths = (y * y).sum(-1, keepdim=True).sqrt() + torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        return (y / lengths.clamp_min(1e-6))[:, 0], y[:, 1:].sigmoid().sum(1)


def check(model, form, sides, limit=1e-5):
    session = onnxruntime.InferenceSession(form, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, *sides)
        wanted = model(images)
        wanted = (wanted,) if isinstance(wanted, torch.Tensor) else wanted
        for got, want in zip(session.run(None, {"images": images.numpy()}), wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=limit)


def test_every_operation_keeps_its_outputs():
    model = Operations().eval().requires_grad_(False)
    check(model, to_onnx(capture(model, torch.zeros(1, 3, 12, 16))).SerializeToString(), (12, 16))


@pytest.mark.slow
def test_a_model_for_one_size_without_torchs_conversion(monkeypatch):
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: pytest.fail("was called"))
    model = create_model("xcit_nano_12_p16", num_classes=5, depth=1).eval().requires_grad_(False)
    check(model, exported(model, torch.zeros(1, 3, 64, 96), one_size=True), (64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("sides", [(224, 224), (96, 160)])
def test_every_family(name, sides):
    """Directly: a missing operation is an error here, where `exported` would take torch's own conversion."""
    model = create_model(name, num_classes=5, **SMALLER[name]).eval().requires_grad_(False)
    example = torch.zeros(1, 3, *sides)
    prepare(model, example)
    check(model, to_onnx(capture(model, example)).SerializeToString(), sides)


def test_what_does_not_depend_on_the_images_is_a_constant():
    class Table(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) * torch.arange(3.0).cos().cumsum(0)

    form = to_onnx(capture(Table(), torch.zeros(1, 3, 4, 4)))
    assert [node.op_type for node in form.graph.node] == ["ReduceMean", "Mul"]


def test_an_operation_without_a_form_is_an_error():
    class Sorted(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)).cumsum(1)

    with pytest.raises(NoForm) as error:
        to_onnx(capture(Sorted(), torch.zeros(1, 3, 4, 4)))
    assert str(error.value) == "aten.cumsum.default has no form"
