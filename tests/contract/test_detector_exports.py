"""A detector of every family, with every head, is exported to one file for all batches and sizes."""

from pathlib import Path

import pytest
import torch
from tests.toys import TOYS
from torch import Tensor, nn
from torch.export import Dim

from tetravit.backbones import VARIANTS
from tetravit.heads import heads_of
from tetravit.models import Detector, create_detector, family
from tetravit.models.detector import PADDING

# Each head behind a column and behind a pyramid, each family with one head: a head sees maps of exact strides alone.
PAIRS = {
    "convit_tiny": "cascade",
    "deit_tiny": "dino_detr",
    "gcvit_xxtiny": "cascade",
    "twins_pcpvt_small": "mask_rcnn",
    "twins_svt_small": "retinanet",
    "xcit_nano_12_p16": "retinanet",
}
MOST = 8  # detections of an image
OPTIONS = {"num_candidates": 30, "max_detections": MOST, "width": 8}
SIZES = [(1, 192, 160), (3, 160, 256), (8, 160, 160)]


def toy(name: str, head: str) -> Detector:
    """A detector of 3 classes whose scores are spread, so that there is something to find."""
    torch.manual_seed(0)
    options = OPTIONS if head == "retinanet" else OPTIONS | {"num_proposals": 20}
    if head == "dino_detr":
        options = {"num_queries": 20, "max_detections": MOST, "width": 16, "hidden": 32, "encoder_layers": 1}
    detector = create_detector(name, head=head, num_classes=3, head_options=options, **TOYS[name]).eval()
    for layer in detector.head.modules():
        if head == "dino_detr":  # many of its layers start with weights of 0
            for parameter in layer.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.3)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            spread(layer)
    with torch.no_grad():
        detector(*example())
    return detector


def spread(layer: nn.Conv2d | nn.Linear) -> None:
    """Scale a layer so that its outputs have the deviation 1 in its first call."""

    def once(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        hook.remove()
        deviation = output.std()
        layer.weight.div_(deviation)
        return output / deviation

    hook = layer.register_forward_hook(once)


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 192, 224), torch.tensor([[192, 200], [160, 224]])


def exported(detector: Detector, path: Path) -> nn.Module:
    """The program of a detector, written to a file and loaded again."""
    least = detector.head.least_side // PADDING
    rows, columns = Dim("rows", min=least, max=64), Dim("columns", min=least, max=64)
    batch = Dim("batch", min=1, max=64)
    shapes = ({0: batch, 2: PADDING * rows, 3: PADDING * columns}, {0: batch})
    with torch.no_grad():
        torch.export.save(torch.export.export(detector, example(), dynamic_shapes=shapes), path)
    return torch.export.load(path).module()


def test_every_family_is_here():
    assert {family(name) for name in TOYS} == {family(name) for name in VARIANTS}
    assert set(PAIRS) == set(TOYS)
    assert set(PAIRS.values()) == set(heads_of("detect"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(*pair, marks=pytest.mark.nightly if pair == ("convit_tiny", "cascade") else ())
        for pair in PAIRS.items()
    ],  # cascade is tested with gcvit
)
def test_one_exported_detector_serves_every_batch_and_size(name, head, tmp_path):
    detector = toy(name, head)
    program = exported(detector, tmp_path / "detector.pt2")
    least = detector.head.least_side
    for count, height, width in (*SIZES, (2, least, least + PADDING)):
        images = torch.randn(count, 3, height, width)
        sizes = torch.tensor([[height - 5 * i, width - 3 * i] for i in range(count)])
        with torch.no_grad():
            got, want = program(images, sizes), detector(images, sizes)
        masks = {"masks"} if detector.head.has_masks else set()
        assert set(got) == set(want) == {"boxes", "scores", "labels", "valid"} | masks
        assert {key: tuple(x.shape[:2]) for key, x in got.items()} == dict.fromkeys(got, (count, MOST))
        found = want["valid"].shape[1]
        assert want["valid"].any()
        assert torch.equal(got["valid"][:, :found], want["valid"])
        assert not got["valid"][:, found:].any()
        for key in want:
            ours, theirs = (x[key][:, :found][want["valid"]] for x in (got, want))
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
