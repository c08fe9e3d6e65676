"""Imports go down the list, never up. The list is the architecture."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tetravit

ORDER = [
    *("files", "notebook", "world", "seeds", "registry", "rle", "structures"),
    *("kernels", "layers", "boxes", "backbones", "heads", "weights"),
    *(
        "data",
        "metrics",
        "models",
        "protocols",
        "tasks",
        "engine",
        "recipe_errors",
        "recipe_tables",
        "recipe",
        "runtimes",
    ),
    *("draw", "predictors", "bulk", "explainers", "report", "trackers", "runs"),
    *("benchmark", "exports", "studies", "bridges", "serve", "api", "doctor"),
    *("cli", "__main__"),
]
SHARED = {"base", "pyramid", "compare"}  # what siblings in a menu folder may import of each other
MENUS = [
    *("backbones", "heads", "data/datasets", "data/transforms", "tasks", "runtimes", "exports", "cli"),
    *(
        "protocols",
        "engine/optimizers",
        "engine/schedules",
        "engine/strategies",
        "weights/layouts",
        "trackers",
        "explainers",
        "bulk",
    ),
]
ROOT = Path(tetravit.__file__).parent


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of `from tetravit.a import b`, `from tetravit import a` and `import tetravit.a`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("tetravit."))


def upward(file: str, source: str) -> list[str]:
    """What `file` (relative to the package) imports that stands above it."""
    part = Path(file).with_suffix("").parts[0]
    return [
        f"{file}:{line} imports {name}"
        for line, name in imported(ast.parse(source))
        if ORDER.index(name.split(".")[1]) > ORDER.index(part)  # an unlisted part is an error too
    ]


def sideways(file: str, source: str, folder: str) -> list[str]:
    """What `file` of a menu folder imports of its siblings."""
    prefix = f"tetravit.{folder.replace('/', '.')}."
    siblings = {path.stem for path in (ROOT / folder).glob("*.py")} - SHARED - {"__init__"}
    return [
        f"{file}:{line} imports {name}"
        for line, name in imported(ast.parse(source))
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in siblings
    ]


def sources(folder: str = "") -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if name != "__init__.py":
            yield name, file.read_text()


def test_imports_only_go_down():
    assert [line for name, source in sources() for line in upward(name, source)] == []


@pytest.mark.parametrize("folder", MENUS)
def test_siblings_share_only_their_base(folder):
    files = [(name, source) for name, source in sources(folder) if not name.endswith("__init__.py")]
    assert [line for name, source in files for line in sideways(name, source, folder)] == []


@pytest.mark.parametrize(
    "line",
    ["from tetravit.heads import classify", "from tetravit import heads", "import tetravit.heads.classify"],
)
def test_an_upward_import_is_noticed(line):
    (found,) = upward("backbones/xcit.py", f"def f():\n    {line}\n")
    assert found.startswith("backbones/xcit.py:2 imports tetravit.heads")
    assert upward("models/classifier.py", line) == []


def test_a_part_outside_the_list_is_noticed():
    with pytest.raises(ValueError, match="'utils' is not in list"):
        upward("heads/classify.py", "import tetravit.utils")


def test_a_sideways_import_is_noticed():
    line = "from tetravit.heads.classify import LinearHead"
    assert sideways("heads/pyramid.py", line, "heads") == [
        "heads/pyramid.py:1 imports tetravit.heads.classify.LinearHead"
    ]
    assert sideways("heads/classify.py", "from tetravit.heads.pyramid import Pyramid", "heads") == []


def test_every_part_is_listed():
    parts = {file.stem for file in ROOT.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists()}
    assert parts - {"__init__"} <= set(ORDER)
