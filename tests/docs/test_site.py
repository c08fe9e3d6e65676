"""The documentation site: its reference is written from the code, its links lead somewhere, it loads nothing else."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import typer
from tests.docs.tools import ROOT, build

import tetravit
from tetravit.backbones import VARIANTS
from tetravit.cli.app import application
from tetravit.cli.base import KINDS, menu, recipe_files
from tetravit.weights import CHECKPOINTS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the site is made from, with the site built, or its pages where zensical is not installed."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "results", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", *build.OTHERS.values()):
        if "/" not in name:
            shutil.copyfile(ROOT / name, folder / name)
    options = [] if find_spec("zensical") else ["--pages"]
    command = [sys.executable, "docs/build.py", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def words(text):
    """Code within a page."""
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.slow
def test_the_reference_is_complete(tree):
    reference = tree / "build" / "docs" / "reference"
    commands = (reference / "commands.md").read_text()

    def verbs(command, path=""):
        for name, sub in getattr(command, "commands", {}).items():
            yield f"{path} {name}", sub
            yield from verbs(sub, f"{path} {name}")

    named = set(re.findall(r"^#+ tetravit(.*)$", commands, re.M))
    for path, command in verbs(typer.main.get_command(application())):
        assert path in named
        part = commands.partition(f" tetravit{path}\n")[2].partition("\n#")[0]
        for option in getattr(command, "params", ()) if not getattr(command, "commands", {}) else ():
            assert option.opts[0] in part or not option.opts[0].startswith("-"), (path, option.opts)
    stored = json.loads((ROOT / "src/tetravit/recipes/keys.json").read_text())
    keys = {row[0] for row in stored["classes"][""][""]}
    keys |= {key for rows in stored["sections"].values() for key in rows}
    assert keys <= words((reference / "keys.md").read_text())
    names = (reference / "names.md").read_text()
    assert set(recipe_files()) <= words(names)
    headings = set(re.findall(r"^### (\S+)$", names, re.M))
    assert headings >= {name for kind in list(KINDS)[3:] if kind != "datasets" for name in menu(kind)}
    models = words((reference / "models.md").read_text())
    assert {*VARIANTS, *CHECKPOINTS} <= models
    python = set(re.findall(r"^## tetravit\.(\w+)$", (reference / "python.md").read_text(), re.M))
    assert python == {name for name in tetravit.__all__ if not name.startswith("__")}


@pytest.mark.slow
def test_every_page_is_in_the_menu(tree):
    listed = set(re.findall(r": ([\w/-]+\.md)$", (tree / "mkdocs.yml").read_text(), re.M))
    pages = tree / "build" / "docs"
    assert listed == {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert not [path for path in pages.rglob("*.md") if "<!-- " in path.read_text()]


@pytest.mark.slow
def test_the_site_asks_no_other_host(tree):
    pytest.importorskip("zensical")
    site = tree / "build" / "site"
    assert build.faults(site) == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()), style.name
    assert (site / "search.json").exists()
    assert 'src="figures/xcit-attention-dark.svg#only-dark"' in (
        site / "families/xcit/index.html"
    ).read_text().replace("../figures", "figures")


def test_a_broken_link_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PAGES", tmp_path)
    (tmp_path / "a.md").write_text("[b](b.md) [nothing](nowhere.md#x)\n```\n[c](c.md)\n```\n")
    (tmp_path / "b.md").write_text("[a](a.md)")
    assert build.broken_links() == ["a.md: nowhere.md"]
