"""README does what it says: every block of code is run, or marked with the reason why not."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tetravit.benchmark.summary import read, summary
from tetravit.cli import main
from tetravit.cli.list import rows_of
from tetravit.data.datasets import DATASETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
BLOCKS = [match.groupdict() for match in BLOCK.finditer(README)]

# Marks of blocks that are not run here: .ci/run runs the first two; the last needs data nobody can ship.
NOT_RUN = {"setup: install", "setup: test", "data"}
QUICK = ["epochs=1", "optim.warmup_epochs=0", "model.options.depth=1", "data.options.fraction=0.1"]


def code(mark: str, language: str) -> list[str]:
    return [b["code"] for b in BLOCKS if b["mark"] == mark and b["language"] == language]


def test_every_block_is_run_or_says_why_not():
    assert {(b["mark"], b["language"]) for b in BLOCKS} == {
        ("run", "bash"),
        ("run", "python"),
        *((mark, "bash") for mark in NOT_RUN),
    }


@pytest.mark.parametrize("mark", ["setup: install", "setup: test"])
def test_a_setup_is_one_line(mark):
    (line,) = code(mark, "bash")
    assert line.count("\n") == 1
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")


def test_commands_and_python_run(tmp_path, monkeypatch, capsys):
    """In one folder, top to bottom; training is cut short, the rest is as written."""
    monkeypatch.chdir(tmp_path)
    digits = DATASETS["digits"](None, "val")
    Path("images").mkdir()
    for i in range(3):
        Image.fromarray(digits[i].image.permute(1, 2, 0).numpy()).save(f"images/{i}.png")
    (commands,) = code("run", "bash")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "tetravit"
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *(QUICK if arguments[0] == "train" else [])])
        assert ended.value.code == 0, f"{line}\n{capsys.readouterr().err}"
    assert Path("runs/latest/report.html").stat().st_size > 10_000
    assert len(list(Path("drawn").iterdir())) == 3
    assert Path("mine.toml").exists()
    capsys.readouterr()

    (script,) = code("run", "python")
    names: dict[str, object] = {}
    exec(compile(script, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 10)
    assert [tuple(m.shape[2:]) for m in names["maps"]] == [(64, 48), (32, 24), (16, 12), (8, 6)]
    assert capsys.readouterr().out.strip() in digits.class_names


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
    found = README.partition("<!-- speed -->\n")[2].partition("\n<!-- /speed -->")[0]
    kinds = ({"mode": "predict", "dtype": "float32", "batch": batch, "size": 224} for batch in (8, 1))
    assert found == "\n\n".join(summary(rows, **kind) for kind in kinds)
