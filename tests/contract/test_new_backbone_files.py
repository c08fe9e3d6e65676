"""A new backbone family, its published weights and the names of a published head: one file each."""

import pytest
from tests.dropped import package_with, python

BACKBONE = '''
"""Pools of colours."""
from functools import partial

from torch import nn
from torch.nn import functional as F

from tetravit.backbones.base import Backbone


class Pools(Backbone):
    """One linear layer per level, on images shrunk to its stride."""

    def __init__(self, *, dim=8, image_size=224, in_chans=3, drop_path=0.0):
        super().__init__(in_chans)
        self.channels, self.strides, self.embed_dim = (dim,) * 4, (4, 8, 16, 32), dim
        self.levels = nn.ModuleList(nn.Conv2d(in_chans, dim, 1) for _ in range(4))

    def stages(self):
        return [[level] for level in self.levels]

    def feature_maps(self, images):
        pairs = zip(self.levels, self.strides)
        return [level(F.avg_pool2d(images, stride, ceil_mode=True)) for level, stride in pairs]

    def forward_features(self, images):
        return self.feature_maps(images)[-1].flatten(2).mT

    def pool(self, features):
        return features.mean(1)


VARIANTS = {"pools_small": partial(Pools, dim=8)}
'''
WEIGHTS = '''
"""Pools of colours: the published weights."""
from tetravit.structures import Preprocess
from tetravit.weights.base import Checkpoint, KeyMap, Rule, Source

NAMES = KeyMap(Rule("fc.{p}", "head.{p}"), Rule("{rest}", "backbone.{rest}"))
LAYOUTS = {"pools": {"official": NAMES}}
CHECKPOINTS = {
    "pools_small.in1k": Checkpoint(
        "pools_small",
        "in1k",
        sources=(Source("https://example.org/pools.pth", "official"),),
        licence="MIT",
        commercial=True,
        preprocess=Preprocess(),
        data="ImageNet-1k",
    )
}
'''
HEAD_NAMES = '''
"""Names of Semantic FPN in files of nobody's."""
from tetravit.weights.base import KeyMap, Rule

KEY_MAPS = {"mine": {"nobody": KeyMap(Rule("decode.{rest}", "head.{rest}"))}}
'''
USE = """
import torch
import tetravit
from tetravit.models import create_backbone, create_detector, create_model, create_segmenter
from tetravit.weights.layouts import KEY_MAPS

x = torch.randn(1, 3, 64, 96)
print([tuple(level.shape[2:]) for level in create_backbone("pools_small")(x)])
model = create_model("pools_small", num_classes=5).eval()
print(tuple(model(x).shape), tuple(model.backbone.patch_features(x).shape))
state = {k.replace("head.", "fc.").removeprefix("backbone."): v for k, v in model.state_dict().items()}
torch.save(state, "theirs.pth")
again = create_model("pools_small", num_classes=5, weights="theirs.pth").eval()
print(torch.equal(again(x), model(x)))
for create, head in ((create_segmenter, "semantic_fpn"), (create_detector, "retinanet")):
    print(create("pools_small", head=head, num_classes=2).kind)
print(sorted(KEY_MAPS["mine"]))
"""
EXPECTED = """[(16, 24), (8, 12), (4, 6), (2, 3)]
(1, 5) (1, 8, 2, 3)
True
segment
detect
['nobody']
"""


@pytest.mark.slow
def test_one_file_each(tmp_path):
    (tmp_path / "package").mkdir()
    files = {
        "backbones/pools.py": BACKBONE,
        "weights/pools.py": WEIGHTS,
        "weights/layouts/mine.py": HEAD_NAMES,
    }
    package = package_with(tmp_path / "package", files)
    assert python(package, "-c", USE, cwd=tmp_path) == EXPECTED
    listed = python(package, "-m", "tetravit", "list", "weights", "pools*", cwd=tmp_path)
    assert "pools_small" in listed
    run = "train finetune model.name=pools_small data.name=digits data.image_size=32 data.workers=0 epochs=1"
    plan = python(package, "-m", "tetravit", *run.split(), "model.weights=", "--dry-run", cwd=tmp_path)
    assert "pools_small" in plan
