"""Cache tensors that depend on the image size and on parameters, but not on the image, in evaluation."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from tetravit.layers.plain import is_capturing, is_transformed

Value = TypeVar("Value")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element: integers of that width


class SizeCache:
    """Keeps the last results of a computation that depends only on a size and on small parameters.

    A result is valid while its source tensors have the values it was computed from. The values are compared bitwise,
    which detects every write, whatever its kind (`.data`, fused optimizers, views). The comparison takes a few
    microseconds on a CPU, against tens to hundreds for the results. On other devices it would synchronize, so nothing
    is cached there; nor while gradients are recorded, a graph is captured, or in transforms of torch.func. Copies and
    pickles of a model start with an empty cache.

    entries: number of results. limit_mib: maximum size of a result.
    """

    def __init__(self, entries: int = 8, limit_mib: int = 64) -> None:
        self.entries, self.limit_mib = entries, limit_mib
        self._kept: dict[Hashable, _Entry] = {}

    def get(self, key: Hashable, sources: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        """`compute()`, or its cached result for the same `key` and equal values of `sources`."""
        sources = tuple(sources)
        if (
            torch.is_grad_enabled()
            or is_capturing()
            or is_transformed()
            or not all(map(_comparable, sources))
        ):
            return compute()
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        key = (key, autocast)
        entry = self._kept.pop(key, None)
        if entry is None or not all(map(_same, entry.sources, sources)):
            value = compute()
            if _mib(value) > self.limit_mib:
                return value
            entry = _Entry(tuple(s.detach().clone() for s in sources), value)
        self._kept[key] = entry  # moved to the end: most recently used
        while len(self._kept) > self.entries:
            self._kept.pop(next(iter(self._kept)), None)
        return entry.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.entries, self.limit_mib)

    def __reduce__(self) -> tuple[type[Self], tuple[int, int]]:
        return type(self), (self.entries, self.limit_mib)


class _Entry(NamedTuple):
    sources: tuple[Tensor, ...]  # copies: the values that `value` was computed from
    value: Any


def _comparable(source: Tensor) -> bool:
    return (
        type(source) in (Tensor, nn.Parameter)
        and source.device.type == "cpu"
        and source.is_floating_point()
        and source.element_size() in BITS
    )


def _same(kept: Tensor, source: Tensor) -> bool:
    """Whether two tensors have the same bits; NaN equals itself, 0 does not equal -0."""
    if kept.dtype != source.dtype:
        return False
    bits = BITS[source.element_size()]
    return torch.equal(kept.view(bits), source.view(bits))


def _mib(value: Any) -> float:
    tensors = [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20
