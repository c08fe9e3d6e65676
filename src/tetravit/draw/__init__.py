"""Draw predictions. One file per kind of prediction."""

from tetravit.draw.base import free_name
from tetravit.draw.label_maps import label_png, overlay, painted
from tetravit.draw.labels import labelled

__all__ = ["free_name", "label_png", "labelled", "overlay", "painted"]
