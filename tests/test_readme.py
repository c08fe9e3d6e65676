"""README and the pages in docs/ do what they say: every block of code is run, or marked with the reason why not."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tetravit.benchmark.summary import read, summary
from tetravit.cli import main
from tetravit.cli.list import rows_of
from tetravit.explainers import EXPLAIN
from tetravit.exports import TARGETS
from tetravit.protocols import PROTOCOLS

pytestmark = pytest.mark.slow  # whole runs and other processes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SPEED = (ROOT / "docs" / "speed.md").read_text()
PAGES = [
    "README.md",
    "docs/dense.md",
    "docs/weights.md",
    "docs/runs.md",
    "docs/evaluation.md",
    "docs/explain.md",
    "docs/serve.md",
    "docs/export.md",
    "docs/data.md",
]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)

# Marks of blocks that are not run here: .ci/run runs the first two; the third needs data nobody can ship;
# tests/serve/test_serve_page.py runs the others.
NOT_RUN = {"setup: install", "setup: test", "data", "serve", "request"}
# What makes a run of each recipe short.
QUICK = {
    "digits": ["epochs=1", "model.options.depth=1", "data.options.fraction=0.1"],
    "shapes-seg": [
        *(
            "steps=1",
            "data.options={size = 64, count = 3}",
            "data.image_size=64",
            "model.head_options.width=8",
        ),
        "model.options={dims = [8, 8, 8, 8], depths = [1, 1, 1, 1], num_heads = [1, 1, 1, 1]}",
    ],
    "shapes-det": [
        *("steps=1", "data.batch_size=2", "data.options={size = 64, count = 3}", "data.image_size=64"),
        "model.options.depths=[1, 1, 1, 1]",
    ],
}
QUICK["mine.toml"] = QUICK["digits"]


def blocks(page: str) -> list[dict[str, str]]:
    return [match.groupdict() for match in BLOCK.finditer((ROOT / page).read_text())]


def code(page: str, mark: str, language: str) -> list[str]:
    return [b["code"] for b in blocks(page) if b["mark"] == mark and b["language"] == language]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    marks = {(b["mark"], b["language"]) for b in blocks(page)}
    assert ("run", "bash") in marks
    assert marks <= {
        ("run", "bash"),
        ("run", "python"),
        ("request", "python"),
        *((mark, "bash") for mark in NOT_RUN),
    }


@pytest.mark.parametrize("mark", ["setup: install", "setup: test"])
def test_a_setup_is_one_line(mark):
    (line,) = code("README.md", mark, "bash")
    assert line.count("\n") == 1
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")


def test_the_readme_is_short():
    text = BLOCK.sub("", README)
    words = [word for line in text.splitlines() if not line.startswith("|") for word in line.split()]
    assert len(words) <= 700


def test_links_lead_somewhere():
    for page in [*PAGES, "docs/speed.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), (page, target)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that holds what git has of docs/, and nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split() or [str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.is_file()]
    for name in listed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    return tmp_path


def run(page: str, capsys) -> None:
    """The commands of a page from top to bottom; training is cut short, the rest is as written."""
    for text in code(page, "run", "bash"):
        for line in text.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "tetravit"
            quick = QUICK[arguments[1]] if arguments[0] == "train" and arguments[1] in QUICK else []
            with pytest.raises(SystemExit) as ended:
                main([*arguments, *quick])
            assert ended.value.code == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_readme_runs_in_a_clone(clone, capsys):
    run("README.md", capsys)
    assert Path("runs/latest/report.html").stat().st_size > 10_000
    assert len(list(Path("drawn").iterdir())) == 3
    capsys.readouterr()

    (script,) = code("README.md", "run", "python")
    names: dict[str, object] = {}
    exec(compile(script, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 10)
    assert [tuple(m.shape[2:]) for m in names["maps"]] == [(64, 48), (32, 24), (16, 12), (8, 6)]
    assert capsys.readouterr().out.strip() in "0123456789"


@pytest.mark.slow
def test_the_page_on_detection_and_segmentation_runs(clone, capsys):
    run("docs/dense.md", capsys)
    assert len(json.loads(Path("results.json").read_text())) >= 0
    assert len(list(Path("maps").iterdir())) == len(list(Path("drawn").iterdir())) == 4
    (script,) = code("docs/dense.md", "run", "python")
    names: dict[str, object] = {}
    exec(compile(script, "docs/dense.md", "exec"), names)
    assert names["labels"].shape == (96, 96)


def test_the_page_on_data_runs(clone, capsys):
    run("docs/data.md", capsys)
    assert Path("check/check.html").exists()
    assert len(list(Path("shards").glob("*.tar"))) > 2


@pytest.mark.slow
def test_the_page_on_runs_runs(clone, capsys):
    run("docs/runs.md", capsys)
    assert Path("run/last.safetensors").exists()


@pytest.mark.slow
def test_the_page_on_evaluation_runs_and_has_every_protocol(clone, capsys):
    run("docs/evaluation.md", capsys)
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/evaluation.md").read_text(), re.M)
    assert sorted(rows) == sorted(PROTOCOLS)


@pytest.mark.slow
def test_the_page_on_explanations_runs_and_has_every_method(clone, capsys):
    run("docs/explain.md", capsys)
    (script,) = code("docs/explain.md", "run", "python")
    exec(compile(script, "docs/explain.md", "exec"), {})
    table = (ROOT / "docs/explain.md").read_text().partition("| method |")[2].partition("\n\n")[0]
    named = {
        name for line in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert named == set(EXPLAIN)


@pytest.mark.slow
def test_the_page_on_exports_runs(clone, capsys):
    run("docs/export.md", capsys)
    (script,) = code("docs/export.md", "run", "python")
    exec(compile(script, "docs/export.md", "exec"), {})
    table = (ROOT / "docs/export.md").read_text().partition("| target |")[2].partition("\n\n")[0]
    rows = {
        name: set(re.findall(r"`(\w+\d+)`", dtypes))
        for name, dtypes in re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", table, re.M)
    }
    assert rows == {name: set(target.dtypes) for name, target in TARGETS.items()}


def test_the_page_on_weights_runs(clone, capsys):
    run("docs/weights.md", capsys)
    assert "xcit_small_12_p16" in capsys.readouterr().out


def family_table() -> str:
    """The table of families as README has it."""
    titles = {"xcit": "XCiT", "convit": "ConViT", "gcvit": "GC ViT", "twins": "Twins", "deit": "DeiT"}
    rows = rows_of("models")
    lines = [
        "| family | models | parameters | GMACs | published top-1 | licence of the weights |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for family, title in titles.items():
        mine = [row for row in rows if row["family"] == family]
        params = [row["params"] / 1e6 for row in mine]
        macs = [row["macs"] / 1e9 for row in mine]
        top1 = [row["top1"] for row in mine if row["weights"] and row["weights"].endswith(".in1k")]
        licences = " ".join(sorted({row["licence"] for row in mine if row["licence"]}))
        cells = [
            title,
            str(len(mine)),
            f"{min(params):.1f} to {max(params):.1f} M",
            f"{min(macs):.1f} to {max(macs):.1f}",
            f"{min(top1):.1f} to {max(top1):.1f} %",
            licences,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_models_is_what_the_menus_say():
    found = README.partition("<!-- models -->\n")[2].partition("\n<!-- /models -->")[0]
    assert found == family_table()


def test_the_tables_of_speed_are_what_was_measured():
    rows = read(ROOT / "results" / "speed.jsonl")
    found = SPEED.partition("<!-- speed -->\n")[2].partition("\n<!-- /speed -->")[0]
    kinds = ({"mode": "predict", "dtype": "float32", "batch": batch, "size": 224} for batch in (8, 1))
    assert found == "\n\n".join(summary(rows, **kind) for kind in kinds)
