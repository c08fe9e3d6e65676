"""Every measured figure on docs/speed.md names its rows, and is what these rows say."""

import json
import re
import statistics
from pathlib import Path

import pytest

from tetravit.benchmark.table import UNDISTURBED

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
TEXT = re.sub(r"<!-- speed -->.*?<!-- /speed -->|```.*?```", "", PAGE, flags=re.S)
# `FILE.jsonl KEY=VALUE ...: FIELD FIGURE`, of several models the geometric mean of each one's last row
CITED = re.compile(r"`([\w]+\.jsonl)((?: [\w]+=[\w.-]+)*): (\w+) ([\d.]+)`")
MEASURED = re.compile(r"\d[\d.]*(?: to \d[\d.]*)? ?(?:times|%|ms\b|seconds?\b|images/s|MiB)")


# Limits by which `optimize` decides: settings, not measurements.
LIMITS = re.compile(r"1\.07 times|1\.15 times|1\.4 times|30 seconds")


def rows_of(file: str, keys: str) -> list[dict]:
    wanted = dict(pair.split("=") for pair in keys.split())
    rows = [json.loads(line) for line in (ROOT / "results" / file).read_text().splitlines()]
    return [row for row in rows if all(str(row.get(key)) == value for key, value in wanted.items())]


def figure_of(file: str, keys: str, field: str) -> float:
    last = {row["model"]: row[field] for row in rows_of(file, keys)}
    assert last, f"no row of {file} has{keys}"
    return statistics.geometric_mean(last.values())


def test_the_page_cites_rows():
    assert len(CITED.findall(TEXT)) >= 4


@pytest.mark.parametrize(("file", "keys", "field", "figure"), CITED.findall(TEXT))
def test_a_cited_figure_is_that_of_its_rows(file, keys, field, figure):
    digits = len(figure.partition(".")[2])
    assert round(figure_of(file, keys, field), digits) == float(figure)


def test_every_sentence_with_a_measured_figure_names_its_rows():
    for line in TEXT.splitlines():
        for sentence in re.split(r"(?<=[.:;)]) (?=[A-Z-])", line):
            without = LIMITS.sub("", CITED.sub("", sentence))
            assert not MEASURED.search(without) or CITED.search(sentence), sentence


def test_a_figure_that_no_row_has_is_found_out():
    assert round(figure_of("speed.jsonl", " contender=optimized dtype=bfloat16 batch=8", "ratio"), 1) != 3.1
    with pytest.raises(AssertionError, match="no row"):
        figure_of("speed.jsonl", " contender=nobody", "ratio")


def test_cited_rows_of_a_busy_machine_are_called_that():
    for file, keys, _, _ in CITED.findall(TEXT):
        busy = [row for row in rows_of(file, keys) if "busy" in row.get("note", "") or was_busy(row)]
        assert not busy or re.search(rf"{file}[^`\n]* busy machine", TEXT)


def was_busy(row: dict) -> bool:
    """Whether others used more cores than the benchmark kept busy itself."""
    return (row.get("others") or 0.0) - row.get("busy", 0) > UNDISTURBED
