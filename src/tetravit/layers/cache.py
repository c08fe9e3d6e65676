"""What depends on the image size but not on the image is computed once per size, in evaluation."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class SizeCache:
    """Remembers the last few results of a computation that depends on sizes and parameters alone.

    It steps aside wherever remembering could change a result: while gradients are recorded, while a graph is
    captured (compile, export, trace), on the meta device. Another or a changed parameter, device or type is
    noticed by its identity, storage and version; autocast has results of its own. Recording gradients empties the
    cache: a step may follow, and torch's fused optimizers change parameters without giving them a new version.
    Copies and pickles of a model start with an empty cache.
    """

    def __init__(self, entries: int = 8, limit_mib: int = 64) -> None:
        self.entries, self.limit_mib = entries, limit_mib
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, sources: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        """`compute()`, or what it gave before for the same `key` and unchanged `sources`."""
        sources = tuple(sources)
        if capturing() or any(s.is_inference() or s.is_meta for s in sources):
            return compute()
        if torch.is_grad_enabled():
            self._kept.clear()
            return compute()
        kind = sources[0].device.type if sources else "cpu"
        mode = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (key, mode, *((id(s), s.data_ptr(), s._version, s.dtype, s.device) for s in sources))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        value = compute()
        if _mib(value) <= self.limit_mib:
            self._kept[key] = value, sources  # kept alive, so that no other tensor gets their identity
            if len(self._kept) > self.entries:
                self._kept.popitem(last=False)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.entries, self.limit_mib)

    def __reduce__(self) -> tuple[type[Self], tuple[int, int]]:
        return type(self), (self.entries, self.limit_mib)


def capturing() -> bool:
    """Whether a graph is being captured, so that Python may not remember anything."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _mib(value: Any) -> float:
    tensors = [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20
