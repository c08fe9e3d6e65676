"""Top-k classes of images.

Shapes: B batch, K classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from tetravit.draw import labelled
from tetravit.models import Classifier
from tetravit.predictors.parts.predictions import Frame, Prediction, Prepared, Source, check_count, in_chunks


@dataclass(frozen=True)
class Guess:
    """One class and its probability in 0..1. index: of the logit."""

    index: int
    name: str
    score: float


@dataclass(frozen=True)
class Classes(Prediction):
    """The top-k classes of an image, most probable first."""

    guesses: tuple[Guess, ...] = ()

    def cells(self) -> list[str]:
        return [f"{g.name}  {100 * g.score:.1f} %" for g in self.guesses] or ["no class"]

    def facts(self) -> dict[str, Any]:
        return {
            "top": [{"index": g.index, "class": g.name, "score": round(g.score, 6)} for g in self.guesses]
        }

    def picture(self, pixels: Tensor) -> Image:
        return labelled(pixels, [(g.name, g.score) for g in self.guesses])


@torch.inference_mode()
def classify(
    model: Classifier,
    images: Iterable[Source],
    *,
    topk: int = 5,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Iterator[Classes]:
    """The top-k classes of each image; for multi-label models, classes whose probability reaches its threshold.

    Args:
        model: from `tetravit.load`, with preprocessing and class names.
        images: files and frames; unreadable files get a prediction with the error.
        topk: classes per image.
        batch_size: images per call of the model.
        device: of the computation.

    Raises:
        ValueError: for counts below 1, or a model without classes.
    """

    def prepared(image: Source) -> Tensor:
        if isinstance(image, Prepared):
            return image.tensor
        return model.preprocess(image.pixels if isinstance(image, Frame) else image)

    check_count("topk", topk)
    check_count("batch_size", batch_size)
    if not model.num_classes:
        raise ValueError("The model has no classes (num_classes=0): it gives embeddings, not predictions.")
    model = model.to(device).eval()
    for files, batch in in_chunks(images, batch_size, prepared):
        pixels = [x for x in batch if isinstance(x, Tensor)]
        results = iter(_guesses(model, torch.stack(pixels).to(device), topk) if pixels else [])
        for file, x in zip(files, batch, strict=True):
            if isinstance(x, Tensor):
                yield Classes(file, guesses=next(results))
            else:
                yield Classes(file, error=x.cause)


def _guesses(model: Classifier, images: Tensor, topk: int) -> list[tuple[Guess, ...]]:
    """Images (B, 3, Hi, Wi) -> top-k classes of each."""
    logits = model(images).float()  # (B, K)
    several = len(model.thresholds) == logits.shape[1]
    scores = logits.sigmoid() if several else logits.softmax(dim=1)
    least = scores.new_tensor(model.thresholds if several else [0.0] * logits.shape[1])
    best = scores.topk(min(topk, scores.shape[1]), dim=1)
    names = model.class_names or [str(i) for i in range(scores.shape[1])]
    return [
        tuple(Guess(i, names[i], s) for s, i, enough in zip(row, places, reached, strict=True) if enough)
        for row, places, reached in zip(
            best.values.tolist(),
            best.indices.tolist(),
            (best.values >= least[best.indices]).tolist(),
            strict=True,
        )
    ]
