"""Cases of people's data: `folder` draws a small set, `tetravit` runs a command on it in this process."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tetravit.cli import main

CLASSES = ("disc", "bar", "cross")
SMALL = (
    "model.name=xcit_nano_12_p16 data.image_size=32 data.batch_size=8 data.workers=0 epochs=1"
    " optim.warmup_epochs=0 'model.options={depth=1}'"
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and all that it printed."""

    code: int
    text: str

    def line(self, word: str) -> str:
        """The first line that begins with a word, without the word."""
        lines = (line.strip() for line in self.text.splitlines())
        return next((line[len(word) :].strip() for line in lines if line.startswith(f"{word} ")), "")


def draw(kind: str, seed: int) -> Image.Image:
    """A white disc, bar or cross on a dark square of 48 pixels."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (48, 48), tuple(int(v) for v in rng.integers(0, 90, 3)))
    pen = ImageDraw.Draw(image)
    x, y = (int(v) for v in rng.integers(6, 20, 2))
    colour = tuple(int(v) for v in rng.integers(160, 255, 3))
    if kind == "disc":
        pen.ellipse((x, y, x + 22, y + 22), fill=colour)
    else:
        pen.rectangle((x, y + 8, x + 22, y + 13), fill=colour)
    if kind == "cross":
        pen.rectangle((x + 8, y, x + 13, y + 22), fill=colour)
    return image


def draw_folder(root: Path, parts: dict[str, int]) -> None:
    """ROOT/PART/CLASS/NUMBER.{png,jpg}, so many images of each class in each part."""
    for seed, (part, count) in enumerate(parts.items()):
        for kind in CLASSES:
            (root / part / kind).mkdir(parents=True)
            for i in range(count):
                name = f"{i}.{'jpg' if i % 2 else 'png'}"
                draw(kind, 100 * seed + i).save(root / part / kind / name)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder `d` below the current one: 8 images of each of 3 classes to train on, 4 to validate."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "d", {"train": 8, "val": 4})
    return tmp_path / "d"


@pytest.fixture
def tetravit(capsys) -> Callable[..., Outcome]:
    """`tetravit("train finetune data.root=d")`; names of SMALL are filled in for `SMALL`."""

    def run(command: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command.replace("SMALL", SMALL)))
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out + printed.err)

    return run
