"""Classifiers: top-k classes of each image."""

from tetravit.predictors.base import Option, Predictor, whole

PREDICTORS = {
    "classify": Predictor(
        noun="classifier",
        run="tetravit.predictors.parts.classes:classify",
        options=(Option("topk", "Classes per image; default 5.", "N", whole),),
    )
}
