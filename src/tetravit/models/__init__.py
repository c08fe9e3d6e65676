"""Backbone + head: whole models, the functions that build them by name, and their files."""

from tetravit.models.base import Model
from tetravit.models.classifier import Classifier
from tetravit.models.create import create_detector, create_model, create_segmenter
from tetravit.models.detector import Detector
from tetravit.models.files import describe, save
from tetravit.models.load import load
from tetravit.models.names import family, list_models, resolve
from tetravit.models.pyramid import PyramidBackbone, create_backbone
from tetravit.models.segmenter import Segmenter

__all__ = [
    "Classifier",
    "Detector",
    "Model",
    "PyramidBackbone",
    "Segmenter",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_segmenter",
    "describe",
    "family",
    "list_models",
    "load",
    "resolve",
    "save",
]
