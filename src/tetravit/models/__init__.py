"""Backbone + head: whole models, the functions that build them by name, and their files."""

from tetravit.models.build import create_backbone, create_model, family, list_models, resolve
from tetravit.models.classifier import Classifier
from tetravit.models.files import describe, save
from tetravit.models.load import load
from tetravit.models.pyramid import PyramidBackbone

__all__ = [
    "Classifier",
    "PyramidBackbone",
    "create_backbone",
    "create_model",
    "describe",
    "family",
    "list_models",
    "load",
    "resolve",
    "save",
]
