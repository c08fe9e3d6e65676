"""docs/bridges.md: every block runs where its library is installed."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "bridges.md").read_text()
BLOCKS = re.findall(r"<!-- run with (\w+) -->\n```python\n(.*?)```", PAGE, re.S)


def test_every_block_names_its_library():
    assert PAGE.count("```python") == len(BLOCKS)
    assert {name for name, _ in BLOCKS} >= {
        "timm",
        "transformers",
        "torchvision",
        "lightning",
        "accelerate",
        "captum",
        "mlflow",
        "optuna",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("library", "script"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_block_runs(library, script, tmp_path, monkeypatch):
    pytest.importorskip(library)
    importlib.import_module(library)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, f"docs/bridges.md, {library}", "exec"), {})
