"""The scripts of docs/, which are no package, as modules."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import build  # noqa: E402
import drawing  # noqa: E402
import figures  # noqa: E402
import notebook  # noqa: E402
import reference  # noqa: E402
import walk  # noqa: E402

__all__ = ["DOCS", "ROOT", "build", "drawing", "figures", "notebook", "reference", "walk"]
