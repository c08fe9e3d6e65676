"""docs/tutorials: every block runs; with training cut short, and each night as it is written, with its output."""

import os
import shutil

import pytest
from tests.docs.tools import DOCS, ROOT, walk

PAGES = ("classify", "segment", "detect", "pretrain", "explain", "serve")
# What makes training short; a later value of a key counts.
CUTS = {
    "digits": ["epochs=1", "model.options.depth=1", "data.options={fraction = 0.1}"],
    "mnist_dino": ["epochs=1", "model.options.depth=1", "data.options.fraction=0.1"],
    "shapes-seg": [
        *("steps=1", "data.image_size=64", "model.head_options.width=8", "data.batch_size=2"),
        "model.options={dims = [8, 8, 8, 8], depths = [1, 1, 1, 1], num_heads = [1, 1, 1, 1]}",
    ],
    "shapes-det": ["steps=1", "data.batch_size=2", "model.options.depths=[1, 1, 1, 1]"],
}
FEWER = {"--train": "40", "--val": "30", "--size": "64", "--threshold": "0.0"}


def short(arguments):
    """A command with less to do."""
    words = [FEWER.get(arguments[i - 1], word) if i else word for i, word in enumerate(arguments)]
    return [*words, *CUTS[words[1]]] if words[0] == "train" else words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the pictures of docs/digits, which the pages name."""
    shutil.copytree(DOCS / "digits", tmp_path / "docs" / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    return tmp_path


def needed(page):
    for name, modules in {
        "classify": ["sklearn"],
        "pretrain": ["sklearn"],
        "detect": ["faster_coco_eval"],
    }.items():
        if page == name:
            for module in modules:
                pytest.importorskip(module)
    if page == "serve":
        pytest.importorskip("uvicorn")
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")


def test_every_tutorial_is_run():
    assert {path.stem for path in (DOCS / "tutorials").glob("*.md")} == set(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_runs(page, folder):
    needed(page)
    with walk.Walk(short) as walking:
        for piece in walk.pieces((DOCS / "tutorials" / f"{page}.md").read_text()):
            if piece.mark == "picture":
                assert (folder / piece.given[0]).stat().st_size > 0
            elif piece.mark != "output":
                walking.run(piece)


@pytest.mark.nightly
@pytest.mark.parametrize("page", PAGES)
def test_the_output_is_that_of_the_page(page, folder):
    needed(page)
    printed = ""
    with walk.Walk() as walking:
        for piece in walk.pieces((DOCS / "tutorials" / f"{page}.md").read_text()):
            if piece.mark == "output":
                assert walk.differences(piece.code, printed) == []
            elif piece.mark != "picture":
                printed = walking.run(piece)
    assert os.getcwd() == str(folder) != str(ROOT)
