"""Backbone + head: whole models, the functions that build them by name, and their files."""

from tetravit.models.build import create_backbone, create_model, family, list_models, resolve
from tetravit.models.classifier import Classifier
from tetravit.models.detector import Detector, create_detector
from tetravit.models.files import describe, save
from tetravit.models.load import load
from tetravit.models.pyramid import PyramidBackbone
from tetravit.models.segmenter import Segmenter, create_segmenter

__all__ = [
    "Classifier",
    "Detector",
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
