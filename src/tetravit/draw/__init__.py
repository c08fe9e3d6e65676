"""Pictures with what a model says about them. One file per kind of answer."""

from tetravit.draw.base import free_name
from tetravit.draw.labels import labelled

__all__ = ["free_name", "labelled"]
