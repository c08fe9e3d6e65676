"""Checkpoints of DINO runs: authors' code, VISSL and this package, and conversions between them.

The authors' `checkpoint.pth` holds `student` (module.backbone.X, module.head.Y), `teacher` (the same, without
`module.` for networks without BatchNorm), `dino_loss` = {center} and `epoch` (the next epoch). No code in a file
is executed.
Source: facebookresearch/dino@7c446df main_dino.py; facebookresearch/vissl.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.files import atomic
from tetravit.weights import torchfile
from tetravit.weights.base import KeyMap
from tetravit.weights.fileformat import BadFile

PROJECTION = re.compile(r"head\.(mlp\.(\d+\.)?\w+|last_layer\.[\w.]+)")
NETWORKS = ("teacher", "student")
# Names of the two weight-norm tensors in newer versions of torch.
PARTS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


@dataclass(frozen=True)
class Network:
    """backbone: tensors under the authors' names, without a prefix. head: `mlp.*`, `last_layer.*`."""

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]


@dataclass(frozen=True)
class FullCheckpoint:
    """Both networks of a run, the centre (1, K), and the next epoch if the file has it."""

    teacher: Network
    student: Network
    center: Tensor | None
    epoch: int | None


def read_full(path: str | Path) -> FullCheckpoint:
    """Read the authors' full checkpoint, or VISSL's.

    Raises:
        BadFile: if the file is damaged, or lacks one of the networks.
    """
    value = torchfile.load(path).value
    value = from_vissl(value) if isinstance(value, Mapping) else {}
    for name in NETWORKS:
        if not isinstance(value.get(name), Mapping):
            raise BadFile(
                f"{path} is no full checkpoint of a DINO run: it has no {name!r}. A file of backbone weights is for"
                " model.weights."
            )
    loss = value.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else None
    epoch = value.get("epoch")
    return FullCheckpoint(
        network(value["teacher"]),
        network(value["student"]),
        center if isinstance(center, Tensor) else None,
        epoch if isinstance(epoch, int) else None,
    )


def network(state: Mapping[str, Any]) -> Network:
    """A state dict of the authors' wrapper -> backbone and head; prefixes are removed at the start of names only."""
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        name = str(key).removeprefix("module.")
        if name.startswith("head.") and PROJECTION.fullmatch(name):
            name = name.removeprefix("head.")
            for new, old in PARTS.items():
                name = name.replace(new, old)
            head[name] = value
        else:
            backbone[name.removeprefix("backbone.")] = value
    return Network(backbone, head)


def write_full(
    path: str | Path, state: Mapping[str, Tensor], names: KeyMap, *, epoch: int = 0, batch_norm: bool = True
) -> None:
    """Write the state of a task `dino` as the authors' full checkpoint, without an optimizer.

    Args:
        state: state dict of the task: model.*, head.*, teacher.*, teacher_head.*, center.
        names: map from our backbone names to the authors'.
        epoch: the next epoch.
        batch_norm: whether the network has BatchNorm: then the teacher's names start with `module.` too.
    """
    saved: dict[str, Any] = {"epoch": epoch, "dino_loss": {"center": state["center"].clone()}}
    for name, model, head in (("student", "model.", "head."), ("teacher", "teacher.", "teacher_head.")):
        prefix = "module." if name == "student" or batch_norm else ""
        ours = {k.removeprefix(model): v for k, v in state.items() if k.startswith(model)}
        theirs = {f"{prefix}backbone.{k}": v for k, v in names.to_theirs(ours).items()}
        theirs |= {f"{prefix}head.{k.removeprefix(head)}": v for k, v in state.items() if k.startswith(head)}
        saved[name] = {k: v.clone() for k, v in theirs.items()}
    with atomic(Path(path)) as file:
        torch.save(saved, file)


def without_projection(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict without projection-head tensors, and the names of those tensors."""
    if not any("last_layer." in name for name in tensors):
        return dict(tensors), ()
    names = tuple(
        k for k in tensors if (n := k.removeprefix("module.")).startswith("head.") and PROJECTION.fullmatch(n)
    )
    return {k: v for k, v in tensors.items() if k not in names}, names


def from_vissl(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """VISSL's checkpoint with the entries of the authors' checkpoint; other values unchanged.

    The student is `classy_state_dict.base_model.model` with the parts `trunk` and `heads`; the teacher is in `loss`
    with the prefix `momentum_teacher.`; its head is `heads.0.*` with `prototypes0` as last layer.
    """
    inside = value.get("classy_state_dict")
    if not isinstance(inside, Mapping):
        return value
    base = inside.get("base_model")
    model = base.get("model") if isinstance(base, Mapping) else None
    tensors: dict[str, Any] = {}
    if isinstance(model, Mapping):
        flat = {
            f"{part}.{k}": v
            for part in ("trunk", "heads")
            if isinstance(model.get(part), Mapping)
            for k, v in model[part].items()
        }
        tensors["student"] = _vissl_network(flat)
    loss = inside.get("loss")
    if isinstance(loss, Mapping):
        start = "momentum_teacher."
        flat = {
            str(k).removeprefix(start).removeprefix("module."): v
            for k, v in loss.items()
            if str(k).startswith(start)
        }
        if flat:
            tensors["teacher"] = _vissl_network(flat)
        if isinstance(loss.get("center"), Tensor):
            tensors["dino_loss"] = {"center": loss["center"]}
    return tensors or value


def _vissl_network(flat: Mapping[str, Any]) -> dict[str, Any]:
    """trunk.X, heads.0.Y -> backbone.X, head.Y."""
    named: dict[str, Any] = {}
    for key, value in flat.items():
        name = key.removeprefix("trunk.trunk.").removeprefix("trunk.")
        if key.startswith("heads."):
            name = re.sub(r"^heads\.(0\.)?", "", key).replace("prototypes0.", "last_layer.")
            named[f"head.{name}"] = value
        else:
            named[f"backbone.{name}"] = value
    return named
