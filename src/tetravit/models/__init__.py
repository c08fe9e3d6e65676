"""Backbone + head: whole models, and the functions that build them by name."""

from tetravit.models.build import (
    create_backbone,
    create_model,
    family,
    list_models,
    resolve,
)
from tetravit.models.classifier import Classifier
from tetravit.models.pyramid import PyramidBackbone

__all__ = ["Classifier", "PyramidBackbone", "create_backbone", "create_model", "family", "list_models", "resolve"]
