"""The pages of docs/: what they name exists, marks are known, figures are those that the script draws."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from tests.docs.tools import DOCS, ROOT, build, figures, reference, walk

import tetravit
from tetravit.cli.app import application
from tetravit.cli.base import menu, recipe_files
from tetravit.weights import CHECKPOINTS

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
KNOWN = {
    "run",
    "data",
    "serve",
    "request",
    "output",
    "picture",
    "setup:",
    "speed",
    "/speed",
    "models",
    "/models",
    "options:",
}
KEYS = json.loads((Path(tetravit.__file__).parent / "recipes" / "keys.json").read_text())


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@cache
def command():
    return typer.main.get_command(application())


def commands(text):
    """Every command line `tetravit ...` of a page: of blocks of shell code, and of code within the text."""
    shell, prose, language = [], [], None
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            language = (line.removeprefix("```") or "plain") if language is None else None
        elif language in ("bash", "plain"):
            shell.append(line)
        elif language is None:
            prose.append(line)
    spans = [span for line in prose for span in line.split("`")[1::2] if span.startswith("tetravit ")]
    for line in [*shell, *spans]:
        start = re.search(r"(?:^|&& |srun |-m )tetravit (?=[a-z-])", line)
        if start:
            yield "tetravit " + line[start.end() :]


def check(line):
    """What a command line names that does not exist; None: nothing."""
    words = shlex.split(line.partition(" && ")[0], comments=True)[1:]
    here = command()
    while words and words[0] in getattr(here, "commands", {}):
        here = here.commands[words.pop(0)]
    if here is command() and words and not words[0].startswith("-") and words[0].islower():
        return f"no verb {words[0]!r}"
    if here.name == "launch":  # torchrun's options, then a command of ours
        return check("tetravit " + shlex.join(words[words.index("train") :])) if "train" in words else None
    takes = {
        name: not p.is_flag for p in here.params for name in (*p.opts, *p.secondary_opts) if name[0] == "-"
    }
    given, words = words, []
    while given:
        word = given.pop(0)
        if not word.startswith("--"):
            words.append(word)
        elif word.partition("=")[0] not in {*takes, "--help"}:
            return f"no option {word!r}"
        elif takes.get(word) and given:
            given.pop(0)
    keys = {row for section in KEYS["sections"].values() for row in section}
    keys |= {row[0] for row in KEYS["classes"][""][""]}
    free = ("data.options", "model.options", "model.head_options", "task.teacher")
    for word in words:
        key = re.match(r"((?:task|evaluate|model|data|optim|run)(?:\.[a-z_]+)+|epochs|steps)=", word)
        if key and key[1] not in keys and not key[1].startswith(free):
            return f"no key {key[1]!r}"
    if here.name in ("train", "copy") and words and re.fullmatch(r"[a-z][\w/-]*", words[0]):
        return None if words[0] in recipe_files() else f"no recipe {words[0]!r}"
    for word in words:
        if re.fullmatch(r"[a-z]+_[\w]+\.(in1k|dino|ade20k|coco)\w*", word) and word not in CHECKPOINTS:
            return f"no weights {word!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_what_there_is(page):
    wrong = [(line, found) for line in commands(page.read_text()) if (found := check(line))]
    assert not wrong


def test_a_command_that_names_nothing_is_found():
    assert check("tetravit trian digits") == "no verb 'trian'"
    assert check("tetravit train digit") == "no recipe 'digit'"
    assert check("tetravit train digits --inot run") == "no option '--inot'"
    assert check("tetravit train digits optim.lrr=1") == "no key 'optim.lrr'"
    assert (
        check("tetravit predict xcit_small_12_p17.in1k_dist a.jpg")
        == "no weights 'xcit_small_12_p17.in1k_dist'"
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_python_exist(page):
    for name in re.findall(r"\btetravit\.([a-z_]+)\(", page.read_text()):
        assert name in tetravit.__all__, name
    for family in ("model", "data", "optim", "run", "evaluate", "task"):
        for key in re.findall(rf"`({family}\.[a-z_]+)`", page.read_text()):
            known = {row for section in KEYS["sections"].values() for row in section}
            assert key in known or key == "data.yaml" or re.fullmatch(r"model\.[a-z_]+", key), key


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_marks_are_known(page):
    marks = re.findall(r"^<!-- (\S+)", page.read_text(), re.M)
    assert set(marks) <= KNOWN


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_is_a_whole_walk(page):
    text = page.read_text()
    pieces = walk.pieces(text)
    assert text.count("```bash") + text.count("```python") == len(
        re.findall(r"<!-- (?:run|serve|request|data) -->", text)
    )
    outputs = [piece for piece in pieces if piece.mark == "output"]
    assert all(piece.code.strip() for piece in outputs), "run docs/walk.py"
    pictures = [piece for piece in pieces if piece.mark == "picture"]
    assert all((page.parent / piece.file).exists() for piece in pictures)


def test_figures_are_those_of_the_script(tmp_path):
    figures.draw(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in figures.FOLDER.iterdir()}
    assert drawn.keys() == kept.keys()
    for name, text in drawn.items():  # shades come from a model: their last digit may differ
        assert re.sub(r'fill-opacity="[^"]+"', "", text) == re.sub(r'fill-opacity="[^"]+"', "", kept[name]), (
            name
        )


def test_dark_figures_use_no_light_colours(tmp_path):
    figures.draw(tmp_path, dark=True)
    light = set(figures.LIGHT.values())
    for path in tmp_path.iterdir():
        assert path.name.endswith("-dark.svg")
        assert not light & set(re.findall(r"#[0-9a-f]{6}", path.read_text())), path.name


def test_every_promise_has_its_test():
    rows = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "reliability.md").read_text())
    assert len(rows) > 30
    for file, test in rows:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)


def test_every_layout_has_a_tree():
    text = (DOCS / "layouts.md").read_text()
    headings = set(re.findall(r"^### (\w+)$", text, re.M))
    named = {name for name in menu("datasets") if re.search(rf"\b{name}\b", text)}
    assert headings <= set(menu("datasets"))
    assert named == set(menu("datasets"))
    for heading in headings:
        part = text.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
        assert "```text\nROOT/\n" in part, heading
        assert f"<!-- options: {heading} -->" in part, heading


def test_options_of_a_layout_come_from_the_code():
    lines = reference.layout_options("yolo").splitlines()
    assert lines[0] == "| `data.options` | type | default | meaning |"
    row = '| `empty` | Empty | drop | "drop" or "keep" training images without objects. |'
    assert row in lines


def test_a_page_for_the_site():
    text = (
        "<!-- run -->\n[a](../results/README.md) [b](CHANGELOG.md) [c](docs/data.md)\n![d](figures/x.svg)\n"
    )
    assert build.for_the_site(text) == (
        "[a](results.md) [b](changelog.md) [c](data.md)\n"
        "![d](figures/x.svg#only-light)![d](figures/x-dark.svg#only-dark)\n"
    )


def test_faults_of_a_site_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="a/">a</a> <a href="b/">b</a> <a href="a/#part">c</a> <a href="#top">d</a>'
        '<script src="https://elsewhere.example/x.js"></script>'
    )
    (tmp_path / "a" / "index.html").write_text("<p id=other>x</p>")
    assert build.faults(tmp_path) == [
        "index.html loads https://elsewhere.example/x.js",
        "index.html: b/",
        "index.html: no such heading: a/#part",
    ]


def test_docstrings_become_lists():
    text = reference.text_of(
        "Do it.\n\nArgs:\n    a, b: two numbers,\n        both small.\n\nRaises:\n    ValueError: if not."
    )
    assert [line for line in text if line] == [
        "Do it.",
        "**Args**",
        "- `a, b`: two numbers, both small.",
        "**Raises**",
        "- `ValueError`: if not.",
    ]


def test_outputs_are_compared_without_numbers():
    shown = "step 2/2  loss 2.436\n...\n ring   0.91\n"
    printed = "step 3/3  loss 0.1\nmore\nstar 0.5\n"
    assert walk.differences(shown, printed) == []
    assert walk.differences("other 1\n", printed) == ["other 1"]
    assert walk.cut("1\n2\n3\n4\n", ["1", "1"]) == "1\n...\n4\n"
