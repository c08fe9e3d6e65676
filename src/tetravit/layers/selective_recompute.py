"""Selective recomputation: cheap activations are recomputed in the backward pass instead of being saved.

Autograd saves the input of every layer. About half of these inputs are one cheap pass over another tensor that is
saved too: a norm, a GELU, a transposed copy. Inside `selective_recompute`, `recomputable` registers how such a value
is computed; where autograd would save the value, or a view of it, it saves this function and its inputs. Layers are
called as usual, and double backward is autograd's own.

    with selective_recompute(x):
        active = recomputable(F.gelu(hidden), F.gelu, hidden)
        y = layer(active)                                # saves `hidden`, which the GELU saves anyway
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.layers.plain import is_capturing, is_plain_module, is_transformed

MIN_VALUES = 2**16  # of a batch of tokens; below this size saving is faster


@dataclass(frozen=True, slots=True)
class _Saved:
    """A tensor and its version when it was saved."""

    tensor: Tensor
    version: int

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation:"
                f" {tuple(self.tensor.shape)} is at version {self.tensor._version}; expected version {self.version}."
            )
        return self.tensor


class _Recipe:
    """The function of a value and its saved inputs; version: of the value for which this is right."""

    def __init__(self, value: Tensor, function: Callable[..., Tensor], sources: tuple[Tensor, ...]) -> None:
        self.function, self.version = function, value._version
        self.sources = [_packed(source.detach()) for source in sources]
        self.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def value(self) -> Tensor:
        enabled, dtype = self.autocast
        with torch.no_grad(), torch.autocast("cpu", enabled=enabled, dtype=dtype):
            return self.function(*(source.get() for source in self.sources))


@dataclass(frozen=True, slots=True)
class _View:
    """A view of a recomputed value."""

    recipe: _Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def get(self) -> Tensor:
        return self.recipe.value().as_strided(self.size, self.stride, self.offset)


class _State(threading.local):
    """State of a thread.

    recipes: by the address of their value, which stays allocated meanwhile; None: outside `selective_recompute`.
    note: see `on_saved_tensor`.
    """

    recipes: dict[int, tuple[Tensor, _Recipe]] | None = None
    note: Callable[[Tensor], None] | None = None


_state = _State()


def selective_recompute(x: Tensor) -> AbstractContextManager[None]:
    """A context for the forward pass of `x` (B, ...), in which `recomputable` values are not saved.

    No effect without gradients, for small tensors, on devices other than CPUs, in captured graphs, in transforms of
    torch.func, and under other hooks on saved tensors, such as those of activation checkpointing.
    """
    if (
        not torch.is_grad_enabled()
        or x.device.type != "cpu"
        or is_capturing()
        or is_transformed()
        or x.numel() < MIN_VALUES
        or (_state.note is None and torch._C._autograd._top_saved_tensors_default_hooks(False) is not None)
    ):
        return nullcontext()
    return _recomputing()


@contextmanager
def on_saved_tensor(note: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `note` with every tensor that autograd saves in forward passes inside the context."""

    def pack(tensor: Tensor) -> Tensor:
        note(tensor)
        return tensor

    _state.note = note
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        _state.note = None


@contextmanager
def _recomputing() -> Iterator[None]:
    _state.recipes = {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(_packed, _unpacked):
            yield
    finally:
        _state.recipes = None


def recomputable(value: Tensor, function: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Return `value`, which equals `function(*sources)`; inside `selective_recompute` it is recomputed, not saved.

    function: deterministic to the bit and in its memory layout, without random numbers, and cheap.
    sources: tensors that are saved anyway, or other recomputable values.
    """
    if is_capturing() or _state.recipes is None or not value.requires_grad or not value.numel():
        return value
    address = value.untyped_storage().data_ptr()
    if all(
        source.untyped_storage().data_ptr() != address for source in sources
    ):  # else a view, which takes no memory
        _state.recipes[address] = value, _Recipe(value, function, sources)
    return value


def recomputable_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x), recomputed in the backward pass if `norm` is a plain LayerNorm."""
    y: Tensor = norm(x)
    if (
        type(norm) is not nn.LayerNorm
        or is_capturing()
        or _state.recipes is None
        or not is_plain_module(norm)
    ):
        return y

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    return recomputable(y, function, x, *(p for p in (norm.weight, norm.bias) if p is not None))


def _packed(tensor: Tensor) -> _Saved | _View:
    """What autograd saves of a tensor."""
    if _state.recipes:
        _, recipe = _state.recipes.get(tensor.untyped_storage().data_ptr(), (None, None))
        if recipe is not None and recipe.version == tensor._version:
            return _View(recipe, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
    if _state.note is not None:
        _state.note(tensor)
    return _Saved(tensor, tensor._version)


def _unpacked(packed: Any) -> Tensor:
    tensor: Tensor = packed.get()
    return tensor
