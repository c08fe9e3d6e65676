"""Metadata of the package: one version, the oldest dependencies, workflows and citation that fit it."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ON_GIT = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="the sdist has no workflows")


def requirement(line):
    """The name and the lower bound of a dependency."""
    return re.match(r"([\w-]+)(?:\[[^\]]*\])?>=([\d.]+)", line).groups()


def test_the_oldest_versions_are_those_of_the_project():
    lines = (ROOT / "packaging" / "lowest.txt").read_text().splitlines()
    pinned = dict(
        re.match(r"([\w-]+)==([\d.]+)\.\*$", line).groups() for line in lines if not line.startswith("#")
    )
    assert pinned == dict(map(requirement, PROJECT["dependencies"]))


def test_the_version_has_one_place():
    """pyproject.toml; CITATION.cff repeats it, nothing in the sources does."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert not [
        file for file in (ROOT / "src").rglob("*.py") if re.search(r"^__version__ *=", file.read_text(), re.M)
    ]


def test_the_citation_names_every_paper_with_its_entry():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    urls = [reference["url"] for reference in citation["references"]]
    entries = (ROOT / "docs" / "citing.md").read_text()
    numbers = re.findall(r"eprint *= \{([\d.]+)\}", entries)
    assert [url.rpartition("/")[2] for url in urls] == numbers
    for reference in citation["references"]:
        assert len(reference["authors"]) >= 5
        names = [author["family-names"] for author in reference["authors"]]
        entry = entries[: entries.index(reference["url"].rpartition("/")[2])].rpartition("@inproceedings")[2]
        plain = re.sub(r"\{\\['`\"]([a-zA-Z])\}", r"\1", entry)
        assert [name for name in names if name not in plain] == []
    mentioned = set(re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "README.md").read_text()))
    assert mentioned <= set(numbers)


@ON_GIT
def test_workflows_are_complete():
    versions = {
        text.rpartition(" :: ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)
    }
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    rows = tests["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert {row["python"] for row in rows} == versions
    assert {row["os"] for row in rows} == {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert any("packaging/lowest.txt" in str(row.get("limits")) for row in rows)
    commands = "\n".join(str(step.get("run")) for job in tests["jobs"].values() for step in job["steps"])
    for needed in ("packaging/check.py", "docs/build.py", "tests/docs/test_notebooks.py", ".ci/run"):
        assert needed in commands, needed
    release = (ROOT / ".github/workflows/release.yml").read_text()
    assert "packaging/check.py" in release


def test_installed_metadata_is_that_of_the_project():
    assert version("tetravit") == PROJECT["version"]
