"""Resolve a source of weights, load it into a model, and convert it to other layouts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tetravit import weights
from tetravit.files import atomic
from tetravit.registry import suggestion
from tetravit.structures import Preprocess
from tetravit.weights import fileformat, hub, store
from tetravit.weights.base import Checkpoint, Source
from tetravit.weights.fileformat import BadFile, Header
from tetravit.weights.layouts import dense_maps
from tetravit.weights.read import Names, Report, State, config_of, family_of, load_into, read_state, rename

RUN_FILES = ("best.safetensors", "last.safetensors")  # in a run folder, in order of preference


@dataclass(frozen=True)
class ResolvedWeights:
    """Resolved weights: their location, catalogue row, configuration and header.

    where: a file, a folder, or the state dict. row, source: catalogue entries, if any.
    """

    where: Path | Mapping[str, Any]
    row: Checkpoint | None = None
    source: Source | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    header: Header | None = None

    @property
    def preprocess(self) -> Preprocess | None:
        """The preprocessing of the weights; None: unknown."""
        if self.header:
            return self.header.preprocess
        return self.row.preprocess if self.row else hub.preprocess_of(self.config)

    @property
    def model(self) -> tuple[str, dict[str, Any]] | None:
        """Name and options (number of classes included) of the model; None: unknown."""
        if self.header:
            return self.header.model, {"num_classes": self.header.num_classes, **self.header.options}
        if self.row:
            return self.row.model, {"num_classes": self.row.num_classes, **self.row.options}
        named = hub.model_of(self.config)
        if named is None:
            return None
        classes = self.config.get("num_classes")
        return named[0], {**named[1], **({"num_classes": classes} if isinstance(classes, int) else {})}

    @property
    def imagenet(self) -> bool:
        """Whether the classes are known to be those of ImageNet-1k, in the usual order."""
        if self.row:
            return self.row.task == "classify" and "ImageNet-1k" in self.row.data
        tag = (self.config.get("pretrained_cfg") or {}).get("tag")
        return self.config.get("num_classes") == 1000 and str(tag).endswith("in1k")


def find(source: Any, *, model: str = "", accept_license: bool = False) -> ResolvedWeights:
    """Resolve `source` to local weights, downloading them if needed.

    Args:
        source: a state dict; resolved weights; a file or folder; NAME.TAG of the catalogue or of an import; TAG only,
            with `model`; a URL; a repository on the hub ("hf:OWNER/NAME").
        model: the name of the model, for a TAG only.
        accept_license: accept a licence that forbids commercial use.

    Raises:
        ValueError: if the source does not exist; the nearest name is suggested.
        Unavailable: if it cannot be downloaded.
    """
    if isinstance(source, ResolvedWeights):
        return source
    if isinstance(source, Mapping):
        return ResolvedWeights(source)
    text = os.path.expanduser(str(source))
    if Path(text).exists():
        path = Path(text)
        if path.is_dir():
            kept = (path / name for name in RUN_FILES)
            if weights_of_run := next((file for file in kept if file.is_file()), None):
                return find(weights_of_run)
            return ResolvedWeights(path, config=config_of(path), header=hub.header_of(path))
        return ResolvedWeights(
            path, header=fileformat.read_header(path) if fileformat.is_ours(path) else None
        )
    if hub.is_repository(text):
        return find(hub.fetch(text))
    if text.startswith(("http://", "https://")):
        return find(store.download(text))
    name = text if "." in text or not model else f"{model}.{text}"
    if "/" not in text and (name in weights.CHECKPOINTS or _is_import(name)):
        got = store.fetch(name, accept_license=accept_license)
        if got.source is None:
            return find(got.path)
        return ResolvedWeights(got.path, weights.CHECKPOINTS[name], got.source)
    if model:
        tags = [row.tag for row in weights.CHECKPOINTS.values() if row.model == model]
        known = f" Published for {model}: {', '.join(tags)}." if tags else f" None are published for {model}."
        raise ValueError(f"No checkpoint named {text!r} for {model}, and no such file.{known}")
    near = suggestion(text, weights.CHECKPOINTS)
    if not near and "/" in text.replace("\\", "/"):
        near = (
            " A run folder is made by `tetravit train RECIPE`; `tetravit list weights` shows published names."
        )
    raise ValueError(f"No checkpoint named {text!r}, and no such file or run folder.{near}")


def state_of(resolved: ResolvedWeights, entry: str | None = None) -> State:
    """The state dict of resolved weights; if a file has several, the one named in the catalogue."""
    state = read_state(resolved.where, entry=entry)
    expected = resolved.source.entry if resolved.source else None
    if entry is None and expected in state.others:
        state = read_state(resolved.where, entry=expected)
    return state


def load(
    model: nn.Module,
    resolved: ResolvedWeights,
    *,
    allow: Sequence[str] = (),
    layouts: Mapping[str, Names] | None = None,
    layout: str | None = None,
    entry: str | None = None,
) -> Report:
    """Load resolved weights into a model. Arguments and errors: see `read.load_into`.

    Published features have no head, and published detectors and segmenters lack tensors used only in classification:
    these may be missing, and are reported.
    """
    row = resolved.row
    if row and row.task == "embed":
        allow = (*allow, "head.*")
    if row and row.head and layouts is None:
        maps = dense_maps(family_of(model), row.head)
        layouts = maps
        allow = (*allow, *(f"{start}*" for names in maps.values() for start in names.unused))
    return load_into(model, state_of(resolved, entry), layout=layout, allow=allow, layouts=layouts)


def num_classes(state: State) -> int:
    """Number of classes of the linear head in a state dict; 0: no head."""
    heads = (
        t for k, t in state.tensors.items() if k.endswith(("head.weight", "head.fc.weight")) and t.ndim == 2
    )
    head = next(heads, None)
    return 0 if head is None else len(head)


def header_for(resolved: ResolvedWeights, name: str, num_classes: int, **facts: Any) -> Header:
    """The header of a converted file; `name`: name of the model."""
    row = resolved.row
    usual = {
        "preprocess": resolved.preprocess or Preprocess(),
        "licence": resolved.header.licence if resolved.header else row.licence if row else "",
        "source": _source_of(resolved),
        "class_names": resolved.header.class_names if resolved.header else (),
        "recipe": resolved.header.recipe if resolved.header else "",
    }
    return Header(name, num_classes=num_classes, **{**usual, **facts})


def write(path: Path, model: nn.Module, header: Header) -> Header:
    """Write a model's weights in our format.

    Raises:
        BadFile: if a tensor of the model has no values.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise BadFile(f"{path} was not written: {empty[0]!r} has no values (missing from the source).")
    path.parent.mkdir(parents=True, exist_ok=True)
    return fileformat.save(path, tensors, header)


def write_as(
    path: Path, model: nn.Module, layout: str, layouts: Mapping[str, Names] | None = None
) -> list[str]:
    """Write a model's weights under another program's names: .safetensors, or in the format of `torch.save`.

    Returns:
        The names written.

    Raises:
        ValueError: if the family does not have that layout.
    """
    state: dict[str, Tensor] = rename(model.state_dict(), family_of(model), layout, layouts)
    with atomic(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            file.write(save({k: v.contiguous() for k, v in state.items()}, metadata={"format": "pt"}))
        else:
            torch.save({k: v.clone() for k, v in state.items()}, file)
    return list(state)


def _is_import(name: str) -> bool:
    try:
        return store.imported(name).is_file()
    except ValueError:
        return False


def _source_of(resolved: ResolvedWeights) -> str:
    if resolved.header:
        return resolved.header.source
    if resolved.source:
        return resolved.source.url
    return resolved.where.name if isinstance(resolved.where, Path) else ""
