"""Deterministic kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch


@contextmanager
def kernels(kind: Literal["repeatable", "fastest"], *, compiled: bool = False) -> Iterator[None]:
    """Use deterministic kernels inside the context if `kind` is `repeatable`; restore the settings afterwards.

    compiled: also set torch's compiler to deterministic kernels, which imports the compiler.
    """
    if kind == "fastest":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    if compiled:
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        if compiled:
            torch.use_deterministic_algorithms(before != 0)
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
