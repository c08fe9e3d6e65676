"""Detectors: boxes, classes and scores, and masks if the model predicts them."""

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
            Option("threshold", "Minimum score of an object; default 0.3.", "SCORE", real),
            WINDOW,
            STRIDE,
            Option(
                "class_agnostic",
                "Class-agnostic NMS: of overlapping objects of any class keep the highest score.",
            ),
            Option(
                "side", "Resize the short side to this size; own: keep the image's size.", "PX|own", _side
            ),
        ),
        outputs=(
            Output(
                Option("results", "Write results in COCO's format to this file.", "FILE", Path),
                "tetravit.predictors.parts.numbers:results",
                (Option("annotations", "COCO JSON of the images, whose ids --results uses.", "FILE", Path),),
            ),
        ),
    )
}
