"""Load the backbone of a classifier into another model."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tetravit.backbones import Backbone
from tetravit.weights import convert
from tetravit.weights.read import Report, load_into


class _Lone(nn.Module):
    """A backbone with the tensor names it has in a classifier."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone


def load_backbone(
    backbone: Backbone, name: str, source: str | Path | Mapping[str, Any], *, accept_license: bool = False
) -> Report:
    """Load classifier weights into a backbone; the classifier head is dropped.

    Parameters used only in dense tasks (norms of the levels) keep their values; those used only in classification may
    be missing. A report on every tensor is printed on standard error.

    Args:
        backbone: of a detector or segmenter, with any image size and windows.
        name: of its model, for a TAG only.
        source: a tag of published weights ("in1k"), a file in any known layout, a URL, a state dict.
        accept_license: accept a licence that forbids commercial use; confirmed once per licence.

    Raises:
        ValueError: if the weights do not exist or do not fit.
    """
    resolved = convert.find(source, model=name, accept_license=accept_license)
    report = load_into(_Lone(backbone), convert.state_of(resolved), allow=("head.*", *_dense_only(backbone)))
    print(report, file=sys.stderr)
    return report


def _dense_only(backbone: Backbone) -> tuple[str, ...]:
    """Patterns of the parameters that the corresponding classifier does not have."""
    return tuple(f"backbone.{name}*" for name in backbone.dense_only)
