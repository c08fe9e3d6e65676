"""Batches on the device of a rank. On a GPU, the copy of the next batch overlaps with computation."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from tetravit.structures import Batch, Target


class Feed:
    """The micro-batches of every step.

    On a GPU one micro-batch is prefetched: its copy, normalization and erasing run on a separate stream, in parallel
    with the stream of the model. On other devices a batch is moved on demand.

    Args:
        batches: micro-batches of each step, on the CPU.
        device: destination.
        memory_format: of the images on the device; None: unchanged.
    """

    def __init__(
        self,
        batches: Iterator[list[Batch]],
        device: torch.device,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        self._batches, self._device, self._format = batches, device, memory_format
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._step: list[Batch] | None = None  # prefetched
        self._error: Exception | None = None  # raised while prefetching; re-raised at the start of its step
        self._source: Batch | None = None  # batch being copied
        self._copy: Batch | None = None

    def __next__(self) -> list[Batch]:
        """The micro-batches of the next step, on the CPU."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        step, self._step = self._step, None
        return next(self._batches) if step is None else step

    def fetch(self) -> None:
        """Start to copy the first micro-batch of the next step; call it after queueing the work of this step."""
        if self._stream is None:
            return
        try:
            self._step = next(self._batches)
        except Exception as error:
            self._error = error
        else:
            self.copy_ahead(self._step[:1])

    def copy_ahead(self, batches: Sequence[Batch]) -> None:
        """Start to copy the first of `batches`, if any."""
        if self._stream is None or not batches:
            return
        with self._beside():
            self._source, self._copy = batches[0], batches[0].to(self._device, self._format)

    def on_device(self, batch: Batch) -> Batch:
        """The micro-batch on the device; the prefetched copy, if there is one."""
        copy, source = self._copy, self._source
        self._copy = self._source = None
        if copy is None or source is not batch:
            return batch.to(self._device, self._format)
        self._join(copy)
        return copy

    def _beside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def _join(self, copy: Batch) -> None:
        """Make the model's stream wait for the copy, and keep the memory until that stream has used it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in _tensors(copy):
            tensor.record_stream(current)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Batch | Target):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
