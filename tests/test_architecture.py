"""ARCHITECTURE.md: its order of layers and its table of what to add where are those of the code."""

import ast
import re
from pathlib import Path

import pytest
from tests.test_layering import ORDER

import tetravit

ROOT = Path(__file__).parents[1]
PACKAGE = Path(tetravit.__file__).parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in TEXT.partition("| Adding |")[2].partition("\n\n")[0].splitlines()[2:]
]
MENU = re.compile(r'discover\((__name__|"[\w.]+"), "([A-Z_]+)"[,)]')
ALIASES = "ALIASES"  # other names of rows, no menu of their own


def menus() -> set[tuple[str, str]]:
    """(folder, table) of every menu in the package."""
    pairs = set()
    for file in PACKAGE.rglob("*.py"):
        for package, table in MENU.findall(file.read_text(encoding="utf-8")):
            folder = file.parent.relative_to(PACKAGE) if package == "__name__" else Path(package[10:-1])
            pairs.add((folder.as_posix(), table))
    return {(folder, table) for folder, table in pairs if table != ALIASES}


def folder_of(row: list[str]) -> str:
    return row[1].strip("`").partition("/<")[0]


def test_the_order_of_layers_is_that_of_the_imports():
    (line,) = re.findall(r"^`(files < .*)`$", TEXT, re.M)
    assert line.split(" < ") == [name for name in ORDER if name != "__main__"]


def test_every_menu_has_a_row():
    named = {(folder_of(row), table) for row in ROWS for table in re.findall(r"`([A-Z_]+)`", row[2])}
    assert named == menus()


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_the_test_that_adds_such_a_file(row):
    folder = folder_of(row)
    assert (PACKAGE / folder).is_dir()
    text = (ROOT / "tests" / "contract" / row[3].strip("`")).read_text()
    assert re.search(rf'"{folder}/\w+\.(py|toml)"|f"{folder}/[^"]+"', text)


def test_a_file_above_400_lines_says_why():
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            assert re.search(r"\bOne file[:,]", docstring), file.name
