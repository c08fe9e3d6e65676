"""The command line in this process, and a small trained run to give it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from tetravit.cli import main
from tetravit.data.datasets import DATASETS
from tetravit.models import create_model, save
from tetravit.recipe import dump, find, load
from tetravit.structures import Preprocess

DIGITS = DATASETS["digits"](None, "val")


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys) -> Ask:
    """`ask("list", "models")` -> exit code and what was printed."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Untrained weights of a model of one block that knows digits, with the recipe a run would leave."""
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16", num_classes=10, depth=1)
    model.class_names, model.input = DIGITS.class_names, Preprocess(size=32, crop=1.0)
    file = tmp_path_factory.mktemp("weights") / "best.safetensors"
    changes = ["model.name=xcit_nano_12_p16", "model.options={depth = 1}", "data.options={fraction = 0.1}"]
    save(model, file, recipe=dump(load(find("digits"), changes)))
    return file


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with three digits, one of them in a folder of its own, and a file that is no image."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/a.png")):
        Image.fromarray(DIGITS[i].image.permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder
