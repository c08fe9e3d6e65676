"""Check the installation: versions, devices, extras, caches.

PyTorch is imported in a subprocess, so that a broken installation becomes a line in the table.
"""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = 120  # for importing torch and torchvision
PROBE = """
import json, os, torch
facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "bf16": False, "devices": []}
if torch.cuda.is_available():
    facts["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts["bf16"] = torch.cuda.is_bf16_supported()
elif torch.backends.mps.is_available():
    facts["devices"] = ["mps"]
facts["built"] = torch.version.cuda or torch.version.hip or "cpu"
print(json.dumps(facts), flush=True)
try:
    import torchvision
    torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5)
    print(json.dumps({"torchvision": "works"}))
except Exception as error:
    print(json.dumps({"torchvision": f"{type(error).__name__}: {error}"}))
"""
# The release of torchvision for torch 2.N is 0.(N + 15): 2.11 and 0.26, 2.12 and 0.27, ...
APART = 15


@dataclass(frozen=True)
class Line:
    """One row of the table. cure: a command or sentence; empty if there is no problem."""

    item: str
    value: str
    problem: str = ""
    cure: str = ""


def examine() -> list[Line]:
    """Check this installation; lines with a `problem` need attention."""
    facts = run_probe()
    lines = [
        Line("tetravit", _version("tetravit")),
        Line("python", platform.python_version()),
        Line("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        torch_line(facts),
        torchvision_line(_version("torch"), _version("torchvision"), facts),
    ]
    if "threads" in facts:
        lines += [device_line(facts), threads_line(facts["threads"])]
    lines += [Line(name, _version(name)) for name in ("numpy", "pillow", "pydantic", "safetensors")]
    return [*lines, *extra_lines(), *cache_lines()]


def run_probe() -> dict[str, Any]:
    """Facts about torch and torchvision from a subprocess; `error` if it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch took more than {SECONDS} s"}
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    if done.returncode:
        last = done.stderr.strip().splitlines()
        facts["error"] = last[-1] if last else f"the process ended with {done.returncode}"
    return facts


def torch_line(facts: dict[str, Any]) -> Line:
    """PyTorch's version, and whether it can be imported."""
    installed = _version("torch")
    if "torch" not in facts:
        return Line(
            "torch", installed, facts.get("error", "it is not installed"), "pip install --upgrade torch"
        )
    return Line("torch", f"{facts['torch']} ({_built(facts['built'])})")


def torchvision_line(torch: str, torchvision: str, facts: dict[str, Any]) -> Line:
    """Whether torchvision is the release for this torch, and its operators work."""
    match, partner = re.match(r"2\.(\d+)", torch), re.match(r"0\.(\d+)", torchvision)
    problem = ""
    wanted = f"0.{int(match[1]) + APART}" if match else ""
    if match and partner and int(partner[1]) != int(match[1]) + APART:
        problem = f"made for torch 2.{int(partner[1]) - APART}, not for torch {torch}"
    elif facts.get("torchvision", "works") != "works":
        problem = " ".join(facts["torchvision"].split())
    elif torchvision == MISSING:
        problem = "it is not installed"
    cure = f"pip install 'torchvision=={wanted}.*'" if problem and wanted else ""
    return Line("torchvision", torchvision, problem, cure)


def device_line(facts: dict[str, Any]) -> Line:
    """The accelerators available to torch, or why there is none."""
    if facts["devices"]:
        bf16 = ", bf16" if facts["bf16"] else ""
        return Line("device", f"{', '.join(facts['devices'])}{bf16}")
    if facts["built"] != "cpu" and Path("/dev/nvidia0").exists():
        return Line(
            "device",
            "cpu",
            f"a GPU is here, and torch ({_built(facts['built'])}) cannot use it",
            "Compare `nvidia-smi` with the CUDA version of torch: update the driver, or install another build.",
        )
    return Line("device", "cpu")


def threads_line(threads: int) -> Line:
    """Threads of torch, and the limit on them."""
    limit = os.environ.get("OMP_NUM_THREADS")
    return Line("threads", f"{threads}" + (f" (OMP_NUM_THREADS={limit})" if limit else ""))


def extra_lines() -> list[Line]:
    """The extras of this package: installed versions, or how to install them."""
    lines = []
    for extra, packages in sorted(extras().items()):
        missing = [name for name in packages if _version(name) == MISSING]
        if missing:
            lines.append(Line(f"extra {extra}", f"not installed (pip install 'tetravit[{extra}]')"))
        else:
            lines.append(Line(f"extra {extra}", ", ".join(f"{name} {_version(name)}" for name in packages)))
    return lines


def extras() -> dict[str, list[str]]:
    """Extras for users, with the packages of each."""
    table: dict[str, list[str]] = {}
    for text in requires("tetravit") or []:
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", text)
        if name and extra and extra[1] not in FOR_DEVELOPERS:
            table.setdefault(extra[1], []).append(name[0])
    return table


def cache_lines() -> list[Line]:
    """The cache folders of this package, with their sizes."""
    from tetravit.weights.store import home

    folder = home()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    offline = " (TETRAVIT_OFFLINE is set)" if os.environ.get("TETRAVIT_OFFLINE") else ""
    return [Line("cache", f"{folder}, {size / 2**20:,.0f} MiB{offline}")]


MISSING = "not installed"
FOR_DEVELOPERS = {"test", "dev", "clients", "docs"}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING if find_spec(name) is None else "unknown version"


def _built(text: str) -> str:
    return "CPU build" if text == "cpu" else f"CUDA {text}"
