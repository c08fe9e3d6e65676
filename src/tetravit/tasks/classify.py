"""Image classification by labels alone."""

from typing import Literal

from tetravit.tasks.parts.classification import Classification, ClassificationConfig


class ClassifyConfig(ClassificationConfig):
    """The `[task]` section of a recipe that classifies."""

    name: Literal["classify"] = "classify"


class Classify(Classification):
    """Train on labels, with the mixing and smoothing of the recipe."""

    Config = ClassifyConfig


TASKS = {"classify": Classify}
