"""What a backward pass needs and can soon compute again is not kept for it.

Autograd keeps the input of every layer. Half of these are one cheap pass over another tensor that is kept too: a
norm, a GELU, a copy in another order. Inside `sparing`, `again` says how such a value is computed; where autograd
would keep the value, or a view of it, it keeps the recipe. Layers are called as ever, and gradients of gradients are
autograd's.

    with sparing(x):
        active = again(F.gelu(hidden), F.gelu, hidden)
        y = layer(active)                                # keeps `hidden`, which the GELU keeps anyway
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

LEAST = 2**16  # values of a batch of tokens; below that keeping is cheaper than remembering how


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor, and how many times it had been written to."""

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
    """How a value is computed, and the version of the value that this holds for."""

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
    """A view of a value that is computed again."""

    recipe: _Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def get(self) -> Tensor:
        return self.recipe.value().as_strided(self.size, self.stride, self.offset)


class _UnderWay(threading.local):
    """Of this thread.

    recipes: by the address of their value, which they keep in use; None: outside `sparing`. note: see `noted`.
    """

    recipes: dict[int, tuple[Tensor, _Recipe]] | None = None
    note: Callable[[Tensor], None] | None = None


_under_way = _UnderWay()


def sparing(x: Tensor) -> AbstractContextManager[None]:
    """A context for the forward pass of `x` (B, ...), in which values given to `again` are not kept.

    Nothing changes where no gradients are recorded, for small tensors and other devices than CPUs, in captured
    graphs, in transforms of torch.func, and where other hooks on saved tensors are active, as in checkpointing.
    """
    if (
        not torch.is_grad_enabled()
        or x.device.type != "cpu"
        or is_capturing()
        or is_transformed()
        or x.numel() < LEAST
        or (
            _under_way.note is None and torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        )
    ):
        return nullcontext()
    return _sparing()


@contextmanager
def noted(note: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `note` with every tensor that autograd keeps of the passes inside the context."""

    def pack(tensor: Tensor) -> Tensor:
        note(tensor)
        return tensor

    _under_way.note = note
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        _under_way.note = None


@contextmanager
def _sparing() -> Iterator[None]:
    _under_way.recipes = {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(_packed, _unpacked):
            yield
    finally:
        _under_way.recipes = None


def again(value: Tensor, function: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """`value`, which is `function(*sources)`; inside `sparing`, autograd computes it again instead of keeping it.

    function: gives the same bits in the same layout for the same sources, draws no random numbers, and is cheap.
    sources: tensors that are kept anyway; also values that are computed again themselves.
    """
    if is_capturing() or _under_way.recipes is None or not value.requires_grad or not value.numel():
        return value
    address = value.untyped_storage().data_ptr()
    if all(
        source.untyped_storage().data_ptr() != address for source in sources
    ):  # else a view: nothing to spare
        _under_way.recipes[address] = value, _Recipe(value, function, sources)
    return value


def norm_again(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x), which autograd computes again where `norm` is a plain LayerNorm."""
    y: Tensor = norm(x)
    if (
        type(norm) is not nn.LayerNorm
        or is_capturing()
        or _under_way.recipes is None
        or not is_plain_module(norm)
    ):
        return y

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    return again(y, function, x, *(p for p in (norm.weight, norm.bias) if p is not None))


def _packed(tensor: Tensor) -> _Kept | _View:
    """What autograd keeps of a tensor."""
    if _under_way.recipes:
        _, recipe = _under_way.recipes.get(tensor.untyped_storage().data_ptr(), (None, None))
        if recipe is not None and recipe.version == tensor._version:
            return _View(recipe, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
    if _under_way.note is not None:
        _under_way.note(tensor)
    return _Kept(tensor, tensor._version)


def _unpacked(packed: Any) -> Tensor:
    tensor: Tensor = packed.get()
    return tensor
