"""The processor: its name, and whether it computes in bfloat16."""

import functools
import platform
from pathlib import Path

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of instructions that multiply in bfloat16


@functools.cache
def processor() -> str:
    """The model of the processor and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    first = dict(part for line in reversed(lines) if (part := _pair(line)))
    return " | ".join(first.get(key, "") for key in ("model name", "CPU part", "flags", "Features"))


def _pair(line: str) -> tuple[str, str] | None:
    key, colon, value = line.partition(":")
    return (key.strip(), value.strip()) if colon else None


def bfloat16_missing() -> str:
    """Why this processor does not compute in bfloat16; "" where it has instructions for it."""
    return "" if BFLOAT16 & set(processor().split()) else "this processor has no instructions for it"
