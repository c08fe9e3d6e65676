"""Detectors on an image of 6000 x 4000 pixels, in one piece and in tiles: time and memory of `tetravit predict`.

The image holds scikit-learn's two photographs side by side; the weights are random, their scores spread so that an
image has as many objects as a detector gives, the most that can be to merge and to write.

    python benchmarks/huge_image.py xcit_tiny_12_p16 retinanet

One JSON row per way to look, with the processor time, which other work on the machine changes little.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from tetravit.data.coco import class_names
from tetravit.models import Detector, create_detector, save

TILE = (600, 400)  # pixels of a photograph in the image
WAYS = {"whole": ("--side", "own"), "tiles": ("--window", "1200"), "shrunk": ()}


def picture(width: int, height: int) -> Image.Image:
    """Photographs in rows; both by turns."""
    photographs = [Image.fromarray(x).resize(TILE) for x in load_sample_images().images]
    canvas = Image.new("RGB", (width, height))
    for row, y in enumerate(range(0, height, TILE[1])):
        for column, x in enumerate(range(0, width, TILE[0])):
            canvas.paste(photographs[(row + column) % 2], (x, y))
    return canvas


def detector(name: str, head: str) -> Detector:
    """A detector whose layers behind the backbone have outputs of deviation 1 on a photograph, scores of 4."""
    torch.manual_seed(0)
    model = create_detector(name, head=head).eval()
    model.class_names = class_names()
    for key, layer in model.head.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            _spread(layer, 4.0 if key.endswith("score") else 1.0)
    pixels = torch.from_numpy(np.array(picture(*TILE))).permute(2, 0, 1)
    model.detect(model.preprocess(pixels)[None], masks="probabilities" if model.head.has_masks else "none")
    return model


def _spread(layer: nn.Module, deviation: float) -> None:
    def once(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        hook.remove()
        factor = deviation / output.std()
        layer.weight.mul_(factor)  # type: ignore[operator, union-attr]
        return output * factor

    hook = layer.register_forward_hook(once)


def measured(weights: Path, image: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Of a process of its own: seconds of a processor, peak of memory, objects."""
    command = [sys.executable, "-m", "tetravit", "predict", str(weights), str(image), "--device", "cpu"]
    out, err = image.with_suffix(".json"), image.with_suffix(".txt")
    with out.open("wb") as told, err.open("wb") as said:
        running = subprocess.Popen([*command, "--json", *options], stdout=told, stderr=said)
        _, status, used = os.wait4(running.pid, 0)
    if status:
        raise SystemExit(err.read_text())
    found = json.loads(out.read_text())
    return {
        "processor_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
        "objects": len(found["objects"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("head")
    parser.add_argument("--size", type=int, nargs=2, default=(6000, 4000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image, weights = Path(folder) / "huge.jpg", Path(folder) / "detector.safetensors"
        picture(*given.size).save(image, quality=90)
        save(detector(given.model, given.head), weights)
        for way in given.ways:
            row = {"model": given.model, "head": given.head, "width": given.size[0], "height": given.size[1]}
            row |= {"look": way, "options": " ".join(WAYS[way])} | measured(weights, image, WAYS[way])
            print(json.dumps(row | {"torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
