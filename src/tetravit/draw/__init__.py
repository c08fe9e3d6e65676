"""Pictures with what a model says about them. One file per kind of answer."""

from tetravit.draw.base import free_name
from tetravit.draw.label_maps import label_png, overlay, painted
from tetravit.draw.labels import labelled

__all__ = ["free_name", "label_png", "labelled", "overlay", "painted"]
