"""Supervised image classification."""

from typing import Literal

from tetravit.tasks.parts.classification import Classification, ClassificationConfig


class ClassifyConfig(ClassificationConfig):
    """The `[task]` section for classification."""

    name: Literal["classify"] = "classify"


class Classify(Classification):
    """Supervised training, with the mixing and label smoothing of the recipe."""

    Config = ClassifyConfig


TASKS = {"classify": Classify}
