"""An explanation method is one new file: its name, its options, its maps and their pictures follow from it."""

import json

import pytest
import torch
from tests.dropped import package_with, python

from tetravit.models import create_model, save

pytestmark = pytest.mark.slow  # whole runs and other processes

MINE = '''
"""How bright each patch is."""

from tetravit.explainers.base import Map, Method, Request
from tetravit.predictors.base import Option, whole


def brightness(model, images, request):
    import torch.nn.functional as F

    side = request.option("side", 16)
    values = F.avg_pool2d(images.mean(dim=1), side)[0]
    return [Map(values.cpu(), "brightness", stride=side, centre=(side - 1) / 2)]


EXPLAIN = {
    "brightness": Method("How bright each patch is.", brightness, options=(Option("side", "Side.", "PX", whole),))
}
'''
CALLS = """
import sys
from tetravit.cli import main
try:
    main(["explain", *sys.argv[1:]])
except SystemExit as ended:
    assert not ended.code, ended.code
"""


def test_a_dropped_method_is_listed_and_drawn(tmp_path):
    (tmp_path / "package").mkdir()
    package = package_with(tmp_path / "package", {"explainers/mine.py": MINE})
    torch.manual_seed(0)
    save(create_model("xcit_nano_12_p16", num_classes=3, depth=1), tmp_path / "w.safetensors")
    from PIL import Image

    Image.new("RGB", (256, 256), "white").save(tmp_path / "white.png")
    given = [tmp_path / "w.safetensors", tmp_path / "white.png", "--method", "brightness", "--side", 32]
    (line,) = python(package, "-c", CALLS, *given, "--draw", tmp_path / "out", "--json").splitlines()
    (one,) = json.loads(line)["maps"]
    assert (one["kind"], one["grid"], one["stride"]) == ("brightness", [7, 7], 32)
    with Image.open(tmp_path / "out" / "white-brightness.png") as picture:
        assert picture.size[0] > 256
    assert "How bright" in python(package, "-m", "tetravit", "list", "methods")
