"""Segmenters: the class of every pixel."""

from pathlib import Path

from tetravit.predictors.base import STRIDE, WINDOW, Option, Output, Predictor, numbers

PREDICTORS = {
    "segment": Predictor(
        noun="segmenter",
        run="tetravit.predictors.parts.segments:segments",
        options=(
            WINDOW,
            STRIDE,
            Option("scales", "Average over these scale factors: 0.5,1,1.5.", "F,F,...", numbers),
            Option("flip", "Also average over horizontally flipped images."),
        ),
        outputs=(
            Output(
                Option("save_maps", "Write each label map to this folder, as PNG.", "DIR", Path),
                "tetravit.predictors.parts.segments:maps",
            ),
        ),
    )
}
