"""Image classification by labels alone."""

from typing import Literal

from tetravit.tasks.parts.classification import Classification, ClassificationConfig


class ClassifyConfig(ClassificationConfig):
    """The `[task]` section of a recipe that classifies."""

    name: Literal["classify"] = "classify"


class Classify(Classification):
    """Learn from the labels, mixed and smoothed as the recipe says."""

    Config = ClassifyConfig


TASKS = {"classify": Classify}
