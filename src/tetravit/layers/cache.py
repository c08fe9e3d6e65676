"""What depends on the image size and on parameters, but not on the image, is computed once per size in evaluation."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from tetravit.layers.plain import is_capturing, is_transformed

Value = TypeVar("Value")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element: integers of that width


class SizeCache:
    """Keeps the last few results of a computation that depends on a size and on small parameters alone.

    A result is valid while its sources have the values that it was computed from. The values themselves are
    compared, to the bit: no write escapes that, in whatever way it was made (`.data`, fused optimizers, views).
    Comparing takes a few microseconds on a CPU, against tens to hundreds for the results. On other devices it would
    wait for the device, so nothing is kept there; nor while gradients are recorded, while a graph is captured, or
    in transforms of torch.func. Copies and pickles of a model start with an empty cache.

    entries: results kept. limit_mib: larger results are not kept.
    """

    def __init__(self, entries: int = 8, limit_mib: int = 64) -> None:
        self.entries, self.limit_mib = entries, limit_mib
        self._kept: dict[Hashable, _Entry] = {}

    def get(self, key: Hashable, sources: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        """`compute()`, or its earlier result for the same `key` and equal values of `sources`."""
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
        self._kept[key] = entry  # at the end: the last one used
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
