"""Machine and source facts of run.json, and the link to the newest run."""

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def point_latest(folder: Path) -> None:
    """Link `runs/latest` to the newest run; skipped where links are not supported."""
    link, new = folder.parent / "latest", folder.parent / f".latest_{os.getpid()}"
    with suppress(OSError):
        if link.exists() and not link.is_symlink():
            return
        new.symlink_to(folder.name)
        os.replace(new, link)


def commit() -> dict[str, Any]:
    """Commit and state of the source tree; None if the package was not installed from a git checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", here, *words], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) not in Path(__file__).parents[3:4]:
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def torch_version() -> str:
    return torch.__version__


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
