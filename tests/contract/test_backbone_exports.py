"""Every family is exported to one program for all batches and sizes: torch.export, and torch.onnx.export.

ONNX graphs of the other families are in tests/exports and tests/runtimes.
"""

import pytest
import torch
from torch.export import Dim

from tetravit.backbones import VARIANTS
from tetravit.models import create_model, family

STAGES = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 4)}
TOYS = {
    "convit_tiny": {"dim": 32, "depth": 3, "num_heads": 4, "num_gpsa": 2},
    "deit_tiny": {"dim": 32, "depth": 2, "num_heads": 2},
    "gcvit_xxtiny": STAGES | {"dim": 16},
    "twins_pcpvt_small": STAGES | {"dims": (8, 16, 24, 32)},
    "twins_svt_small": STAGES | {"dims": (8, 16, 24, 32)},
    "xcit_nano_12_p16": {"dim": 32, "depth": 2, "num_heads": 2},
}
ONNX = ("convit_tiny", "twins_svt_small", "xcit_nano_12_p16")  # tokens, windows, channels
SIZES = [(1, 3, 64, 64), (3, 3, 100, 333), (2, 3, 224, 448), (2, 3, 80, 225)]


def dynamic():
    """Any batch, and sides from two cells of the deepest map up: PyTorch takes a symbol of 1 for another program."""
    sides = {axis: Dim(name, min=64, max=2048) for axis, name in ((2, "height"), (3, "width"))}
    return ({0: Dim("batch", min=1, max=64), **sides},)


@pytest.fixture(scope="module", params=TOYS)
def toy(request):
    torch.manual_seed(0)
    return VARIANTS[request.param](**TOYS[request.param]).eval()


def test_every_family_is_here():
    assert {family(name) for name in TOYS} == {family(name) for name in VARIANTS}


@pytest.mark.slow
def test_one_exported_program_serves_every_batch_and_size(toy):
    program = torch.export.export(toy, (torch.randn(2, 3, 224, 256),), dynamic_shapes=dynamic()).module()
    for size in SIZES:
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(program(images), toy(images), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("toy", ONNX, indirect=True)
def test_one_onnx_graph_serves_every_batch_and_size(toy, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    images = torch.randn(2, 3, 224, 256)
    torch.onnx.export(toy, (images,), path, dynamo=True, dynamic_shapes=dynamic(), verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in SIZES:
        images = torch.randn(size)
        (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(answer), toy(images), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convit_tiny", "deit_tiny_distilled", "gcvit_xxtiny"])
def test_one_exported_classifier_serves_sides_from_32_pixels(name):
    model = create_model(name, num_classes=5, **TOYS[name.removesuffix("_distilled")]).eval()
    shapes = (dict.fromkeys((0, 2, 3), Dim.DYNAMIC),)
    program = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=shapes).module()
    for size in ((1, 3, 64, 64), (3, 3, 70, 333), (2, 3, 224, 224), (2, 3, 33, 40)):
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=0)
