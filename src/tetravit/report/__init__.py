"""report.html of a run: configuration, curves, and failure cases in one file.

The page is self-contained: no network, no fonts, no library. Parts without data in the run folder are omitted. Parts
specific to a kind of model or task have their own files.
"""

from pathlib import Path

from tetravit.registry import discover
from tetravit.report.base import Kind
from tetravit.report.page import page
from tetravit.report.run import Run, read
from tetravit.tasks import TASKS

REPORTS: dict[str, Kind] = discover(__name__, "REPORTS")
NAME = "report.html"

__all__ = ["NAME", "REPORTS", "Kind", "Run", "read", "write"]


def write(folder: str | Path) -> Path:
    """Write report.html into a run folder, and return the file.

    Raises:
        ValueError: if the folder is not a run folder.
    """
    folder = Path(folder)
    run = read(folder)
    name = run.recipe.get("task", {}).get("name")
    task = TASKS.get(name)
    kind = REPORTS.get(name) or REPORTS[task.model_kind if task else "classify"]
    file = folder / NAME
    partial = file.with_suffix(".partial")
    # folder names that are not UTF-8 contain surrogates, which cannot be encoded
    partial.write_text(page(run, kind), encoding="utf-8", errors="replace")
    return partial.replace(file)
