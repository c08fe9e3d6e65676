"""What the verbs load: a prediction goes without torchvision, the compiler and what trains."""

import itertools
import json
import subprocess
import sys

import pytest
from PIL import Image
from tests.toys import TOYS

from tetravit.models import create_detector, create_model, create_segmenter, save

pytestmark = pytest.mark.slow  # whole runs and other processes

NAME = "xcit_nano_12_p16"
HEAVY = ("torchvision", "torch._dynamo", "sympy", "tetravit.engine.loop", "tetravit.data.transforms", "scipy")
PROGRAM = """
import json, sys
from tetravit.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    print(json.dumps([name for name in sys.modules]))
"""


def loaded(*args):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("build", [create_model, create_detector, create_segmenter])
def test_predict(tmp_path, build):
    options = {} if build is create_model else {"head_options": {"width": 8}}
    save(build(NAME, num_classes=2, **options, **TOYS[NAME]), tmp_path / "a.safetensors")
    Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "a.jpg")
    modules = loaded("predict", str(tmp_path / "a.safetensors"), str(tmp_path / "a.jpg"), "--device", "cpu")
    assert "torch" in modules
    assert not modules & set(HEAVY)


def test_train(tmp_path):
    """Neither torchvision nor torch's compiler, which load longer than a small run takes."""
    for part, name, i in itertools.product(("train", "val"), "ab", range(2)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (100 * i, 10, 10)).save(tmp_path / part / name / f"{i}.jpg")
    toy = [f"model.options.{key}={value}" for key, value in TOYS[NAME].items() if key != "image_size"]
    small = ["data.image_size=32", "data.batch_size=2", "data.workers=0", "steps=1", "run.device=cpu"]
    args = [f"data.root={tmp_path}", f"model.name={NAME}", *toy, *small]
    modules = loaded("train", "finetune", *args, "--into", str(tmp_path / "run"))
    assert (tmp_path / "run" / "last.safetensors").exists()
    assert "tetravit.engine.loop" in modules
    assert not modules & {"torchvision", "torch._dynamo", "sympy", "scipy", "tetravit.runtimes"}


@pytest.mark.parametrize(
    "args",
    [
        ("list", "models"),
        ("show", "deit_small"),
        ("show", "deit_smal"),
        ("show", "optim"),
        ("show", "optim.lr"),
        ("show", "xcit/imagenet"),
        ("train", "digit"),
    ],
)
def test_menus_go_without_torch(args):
    assert not loaded(*args) & {"torch", "numpy"}
