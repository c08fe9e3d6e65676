"""Weights + images -> the likeliest classes of each, in the order of the images.

Shapes: B batch, K classes.
"""

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tetravit.data.decode import BadImage
from tetravit.models import Classifier

_ENDINGS = "jpg jpeg jpe png webp bmp gif tif tiff ppm pgm jp2 tga avif mpo"
SUFFIXES = {f".{ending}" for ending in _ENDINGS.split()}


@dataclass(frozen=True)
class Guess:
    """One class and its probability in 0..1. index: its place in the logits."""

    index: int
    name: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image: the likeliest classes first, or why the image cannot be read."""

    image: Path
    guesses: tuple[Guess, ...] = ()
    error: str | None = None


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Files, folders (searched to the bottom) and shell patterns -> files, in order, each once.

    A file that is named counts whatever its ending; in a folder those count that end like an image.

    Raises:
        ValueError: for a place where there is nothing.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"There are no images in the folder {str(place)!r}.")
            found += inside
        elif path.is_file():
            found.append(path)
        elif glob.has_magic(str(place)):
            matches = sorted(Path(p) for p in glob.glob(str(place), recursive=True))
            files = [p for p in matches if p.is_file()]
            if not files:
                raise ValueError(f"No image matches {str(place)!r}.")
            found += files
        else:
            raise ValueError(f"There is no image or folder {str(place)!r}.")
    return list(dict.fromkeys(found))


@torch.inference_mode()
def predict(
    model: Classifier,
    images: Iterable[Path],
    *,
    topk: int = 5,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    threads: int = 2,
) -> Iterator[Prediction]:
    """Classify image files.

    Args:
        model: with its preprocessing and class names, as `tetravit.load` gives it.
        images: files; those that cannot be read get a prediction that says why.
        topk: classes per image; at most as many as the model has.
        batch_size: images per call of the model.
        device: where to compute.
        threads: images read at the same time.

    Raises:
        ValueError: for counts below 1, or a model without classes.
    """
    for name, value in (("topk", topk), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is 1 or more; got {value}.")
    if not model.num_classes:
        raise ValueError("The model has no classes (num_classes=0): it gives embeddings, not predictions.")
    model = model.to(device).eval()
    pending = iter(images)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(pending, batch_size)):
            yield from _chunk(model, chunk, pool, topk, device)


def _chunk(
    model: Classifier, files: Sequence[Path], pool: ThreadPoolExecutor, topk: int, device: torch.device | str
) -> list[Prediction]:
    read = list(pool.map(lambda file: _read(model, file), files))
    pixels = [x for x in read if isinstance(x, Tensor)]
    answers = iter(_ask(model, torch.stack(pixels).to(device), topk) if pixels else [])
    return [
        Prediction(file, next(answers)) if isinstance(x, Tensor) else Prediction(file, error=x.cause)
        for file, x in zip(files, read, strict=True)
    ]


def _read(model: Classifier, file: Path) -> Tensor | BadImage:
    try:
        return model.preprocess(file)
    except BadImage as error:
        return error


def _ask(model: Classifier, images: Tensor, topk: int) -> list[tuple[Guess, ...]]:
    """Images (B, 3, Hi, Wi) -> the guesses for each."""
    scores = model(images).float().softmax(dim=1)  # (B, K)
    best = scores.topk(min(topk, scores.shape[1]), dim=1)
    names = model.class_names or [str(i) for i in range(scores.shape[1])]
    return [
        tuple(Guess(i, names[i], s) for s, i in zip(row, places, strict=True))
        for row, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
