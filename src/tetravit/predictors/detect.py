"""Detectors: boxes, names and scores of objects, and masks where the model has them."""

from pathlib import Path

from tetravit.predictors.base import STRIDE, WINDOW, Option, Output, Predictor, real


def _side(text: str) -> int | str:
    if text == "own" or text.removeprefix("-").isdecimal():
        return text if text == "own" else int(text)
    raise ValueError(f"takes pixels, or own; got {text!r}.")


PREDICTORS = {
    "detect": Predictor(
        noun="detector",
        run="tetravit.predictors.parts.objects:objects",
        options=(
            Option("threshold", "Leave out objects with lower scores; default 0.3.", "SCORE", real),
            WINDOW,
            STRIDE,
            Option(
                "class_agnostic",
                "Of objects that overlap keep the one with the highest score, whatever their classes.",
            ),
            Option("side", "Resize the short side to this; own: keep the image's size.", "PX|own", _side),
        ),
        outputs=(
            Output(
                Option("results", "Write COCO's result format here.", "FILE", Path),
                "tetravit.predictors.parts.numbers:results",
                (Option("annotations", "COCO's JSON of the images: --results takes its ids.", "FILE", Path),),
            ),
        ),
    )
}
