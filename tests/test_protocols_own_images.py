"""Retrieval, copy detection and video segmentation: features equal the authors'; small sets are scored whole."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from selfsup import inputs
from selfsup.answers import check, meta, tensors
from torch import nn

from tetravit.backbones.xcit import XCiT
from tetravit.data.datasets.base import DatasetInfo
from tetravit.models import create_model
from tetravit.protocols import PROTOCOLS, Loaders
from tetravit.protocols.copy import descriptor
from tetravit.protocols.parts.features import fine_features
from tetravit.protocols.parts.pictures import normalised
from tetravit.protocols.retrieval import SCALES, multi_scale
from tetravit.weights.xcit import LAYOUTS

pytestmark = pytest.mark.slow  # whole runs and other processes

NOTHING = Loaders([], DatasetInfo("unlabelled", 0, ()))


@pytest.fixture(scope="module")
def backbone():
    """The small XCiT of the goldens."""
    keys = {k.removeprefix("backbone."): s for k, s in meta()["x_keys"].items() if k.startswith("backbone.")}
    state = LAYOUTS["xcit"]["official"].to_ours(tensors(inputs.state("feat.", keys)))
    model = XCiT(patch_size=8, dim=32, depth=2, num_heads=4)
    model.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items()})
    return model.eval()


def test_features_are_the_authors(backbone):
    images = torch.from_numpy(inputs.feature_images())
    with torch.no_grad():
        check("xf_embedding", backbone(images))
        tokens = backbone.forward_features(images)
        check("xf_tokens", tokens)
        assert torch.equal(backbone.patch_features(images).flatten(2).mT, tokens[:, 1:])
        scaled = multi_scale(backbone, torch.from_numpy(inputs.multi_scale_image()), SCALES)
        check("xf_multiscale", scaled)
        record = backbone.attention(images, kinds=["class"])[-1]  # of the last class block
        assert record.grid == (8, 6)
        own = 1 - record.seen[..., None]  # the class token's weight on itself
        check("xf_class_attention", torch.cat((own, record.values.flatten(2)), dim=2))
        pictures = torch.cat([normalised(Image.fromarray(image)) for image in inputs.copy_images()])
        check("copy_features", descriptor(backbone, pictures))


@pytest.mark.parametrize(
    ("name", "stride", "width"),
    [
        ("xcit_nano_12_p8", 8, 128),
        ("deit_tiny", 16, 192),
        ("gcvit_xxtiny", 16, 256),
        ("twins_svt_small", 16, 256),
    ],
)
def test_patch_features_of_every_family_are_fine(name, stride, width):
    with torch.device("meta"):
        backbone = create_model(name, num_classes=0).backbone.eval()
        features, found = fine_features(backbone, torch.zeros(1, 3, 96, 128))
        assert (features.shape, found) == ((1, width, 96 // stride, 128 // stride), stride)
        assert descriptor(backbone, torch.zeros(1, 3, 96, 128)).shape == (1, backbone.embed_dim + width)


def scored(name, model=None, **options):
    row = PROTOCOLS[name]
    protocol = row(row.Config(protocol=name, **options))
    with torch.inference_mode():
        return protocol.score(Colours() if model is None else model, NOTHING)


class Colours(nn.Module):
    """Mean colour of an image as its embedding, of each 8 x 8 patch as its feature."""

    embed_dim, strides = 3, (8,)

    def forward(self, images):
        return images.mean((2, 3))

    def patch_features(self, images):
        return nn.functional.avg_pool2d(images, 8)


def save(path, colour, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, quality=95)


COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (120, 120, 10)]


def test_retrieval(tmp_path):
    names = [f"image{i}" for i in range(4)]
    for name, colour in zip(names, COLOURS, strict=True):
        save(tmp_path / "jpg" / f"{name}.jpg", colour)
    save(tmp_path / "jpg" / "query.jpg", (240, 20, 20))
    row = {"bbx": np.array([0.0, 0, 40, 40]), "easy": [0], "hard": [], "junk": [3]}
    table = {"imlist": names, "qimlist": ["query"], "gnd": [row]}
    with pytest.raises(ValueError) as error:
        scored("retrieval", root=str(tmp_path))
    assert str(error.value) == f"{tmp_path} has no gnd_roxford5k.pkl or gnd_rparis6k.pkl."
    (tmp_path / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(table))
    scores = scored("retrieval", root=str(tmp_path), crop_queries=True)
    assert scores.values["map_M"] == scores.values["map_E"] == scores.values["mp1_M"] == 1.0
    assert np.isnan(scores.values["map_H"])
    assert scores.findings["settings"] == {
        "set": "rparis6k",
        "size": 512,
        "scales": 3,
        "crop_queries": True,
    }


def test_copies_of_any_folder(tmp_path):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / f"{i}.png", colour)
    scores = scored("copy", root=str(tmp_path), size=32)
    assert scores.values["copy_mean"] == 1.0
    assert len(scores.values) == 19
    assert scores.findings["settings"]["set"] == "attacks made from the originals"


def test_copydays(tmp_path):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "original" / f"200{i}00.png", colour)
        save(tmp_path / "jpegqual" / "3" / f"200{i}00.jpg", colour)
        save(tmp_path / "strong" / f"200{i}01.png", colour)
    scores = scored("copy", root=str(tmp_path), size=32, whiten=str(tmp_path / "original"), dim=3)
    assert scores.values == {"copy_jpegqual_3": 1.0, "copy_strong": 1.0, "copy_mean": 1.0}
    (tmp_path / "jpegqual" / "3" / "200000.jpg").unlink()
    with pytest.raises(ValueError) as error:
        scored("copy", root=str(tmp_path))
    assert str(error.value) == f"{tmp_path}/jpegqual/3 has 3 images, original/ 4."


def test_video(tmp_path):
    frames, masks = tmp_path / "JPEGImages/480p/walk", tmp_path / "Annotations/480p/walk"
    for t in range(5):
        labels = np.zeros((64, 128), np.uint8)
        labels[16:48, 16 + 8 * t : 48 + 8 * t] = 1
        image = np.where(labels[..., None] == 1, np.uint8([250, 20, 20]), np.uint8([20, 20, 250]))
        frames.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(frames / f"{t:05d}.png")
        indexed = Image.fromarray(labels, mode="P")
        indexed.putpalette([0, 0, 0, 200, 0, 0])
        indexed.save(masks / f"{t:05d}.png")
    scores = scored("video", root=str(tmp_path), short=64, out=str(tmp_path / "out"))
    assert scores.values["j_mean"] > 0.85
    assert scores.values["jf"] == pytest.approx((scores.values["j_mean"] + scores.values["f_mean"]) / 2)
    written = Image.open(tmp_path / "out/walk/00000.png")
    assert np.asarray(written).max() == 1
    assert written.getpalette()[:6] == [0, 0, 0, 200, 0, 0]


@pytest.mark.parametrize("name", ["retrieval", "copy", "video"])
def test_a_protocol_without_its_folder(name):
    with pytest.raises(ValueError) as error:
        scored(name)
    assert str(error.value) == f"The protocol {name!r} has images of its own: set evaluate.root."
