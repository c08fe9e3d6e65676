"""The pages of the documentation site: written from the code, with links that lead somewhere; the site itself."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the site is made from."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "results", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "mkdocs.yml"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(tree, *options):
    return subprocess.run(
        [sys.executable, "docs/build.py", *options], cwd=tree, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_reference_is_that_of_the_code(tree):
    done = build(tree, "--pages")
    assert done.returncode == 0, done.stderr
    reference = tree / "build" / "docs" / "reference"
    commands = (reference / "commands.md").read_text()
    assert "### tetravit train" in commands
    assert "| `--into` |" in commands
    assert "| `optim.lr` |" in (reference / "keys.md").read_text()
    assert "| gcvit_xxtiny.in1k | classify |" in (reference / "models.md").read_text()
    assert "## tetravit.create_model" in (reference / "python.md").read_text()
    listed = set(re.findall(r": ([\w/-]+\.md)$", (tree / "mkdocs.yml").read_text(), re.M))
    assert listed == {
        str(p.relative_to(tree / "build" / "docs")) for p in (tree / "build" / "docs").rglob("*.md")
    }


@pytest.mark.slow
def test_a_broken_link_is_named(tree):
    page = tree / "docs" / "citing.md"
    kept = page.read_text()
    page.write_text(kept + "\n[nothing](nowhere.md)\n")
    done = build(tree, "--pages")
    page.write_text(kept)
    assert (done.returncode, done.stderr) == (1, "Broken link: citing.md: nowhere.md\n")


@pytest.mark.slow
def test_the_site_asks_no_other_host(tree):
    pytest.importorskip("zensical")
    done = build(tree)
    assert done.returncode == 0, done.stderr
    page = (tree / "build" / "site" / "index.html").read_text()
    loaded = re.findall(
        r'<(?:script|img|iframe)[^>]+src="([^"]+)"|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="([^"]+)"',
        page,
    )
    assert not [address for pair in loaded for address in pair if "//" in address]
