"""Weights of a whole classifier into the backbone of another model."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tetravit.backbones import Backbone
from tetravit.weights import convert
from tetravit.weights.read import Report, load_into


class _Lone(nn.Module):
    """A backbone under the name it has in a classifier."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone


def load_backbone(
    backbone: Backbone, name: str, source: str | Path | Mapping[str, Any], *, accept_license: bool = False
) -> Report:
    """Begin with the weights of a classifier, whose head is left out.

    Parameters that only dense tasks use (the norms of the levels) stay as they are; those that only
    classification uses may be missing. A report of every tensor is printed on standard error.

    Args:
        backbone: of a detector or segmenter, whatever its image size and windows.
        name: of its model, for a tag alone.
        source: the tag of published weights ("in1k"), a file in any known layout, a URL, a state dict.
        accept_license: agree to a licence that forbids commercial use; confirmed once per licence.

    Raises:
        ValueError: if there are no such weights, or they do not fit.
    """
    resolved = convert.find(source, model=name, accept_license=accept_license)
    report = load_into(_Lone(backbone), convert.state_of(resolved), allow=("head.*", *_dense_only(backbone)))
    print(report, file=sys.stderr)
    return report


def _dense_only(backbone: Backbone) -> tuple[str, ...]:
    """Patterns of the parameters that the classifier of the same name does not have."""
    return tuple(f"backbone.{name}*" for name in backbone.dense_only)
