"""Every study in small: rows in results/studies.jsonl, and their tables, results/studies.md.

    python benchmarks/studies.py                    # runs what the rows lack, then writes the tables
    python benchmarks/studies.py --only coco,ade20k # these alone
    python benchmarks/studies.py --tables           # writes the tables from the rows
    python benchmarks/studies.py --costs            # prints the table of studies/parts/costs.py, counted anew

A study whose rows are there already is not run again: delete its lines to renew them.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tetravit.studies import STUDIES, Study
from tetravit.studies.parts import costs

RESULTS = Path(__file__).parents[1] / "results"
HEAD = """# Studies in small

`tetravit study NAME --small` for every study: the question of a table or figure of the papers, on small models and on
digits or drawings. None of these figures is the paper's. Rows in `studies.jsonl`; `python benchmarks/studies.py` runs
the studies and writes this page from their rows.

A verdict compares a row with the one of the same study that it names. A difference is significant
from two standard errors on: those of the validation images, treated as independent between rows, and of the runs if
there are several. Runs of one row differ only by their seed.
"""


def read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of a file by study, in the order of the menu."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {name: found for name in STUDIES if (found := [row for row in rows if row["study"] == name])}


def page(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables of all studies."""
    missing = [f"`{name}`" for name in STUDIES if name not in rows]
    note = [f"No rows yet of {', '.join(missing)}.\n"] if missing else []
    return "\n".join([HEAD, *note, *(section(name, STUDIES[name], found) for name, found in rows.items())])


def section(name: str, study: Study, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of one study, its question and its command."""
    last = rows[-1]
    threads = f"{last['threads']} thread{'s' * (last['threads'] > 1)}"
    facts = f"{last['device']}, {threads}, torch {last['torch']}, {last['date']}"
    head = list(study.columns)
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['--:'] * (len(head) - 1)])}|"]
    for row in rows:
        values = (value(row) for value in study.columns.values())
        lines.append(f"| {' | '.join('' if v is None else str(v) for v in values)} |")
    about = f"{study.question} Takes {study.small}. Source: {study.source}."
    command = f"`tetravit study {name} --small`: {facts}."
    return "\n".join([f"## {name}\n", about, "", command, "", *lines, ""])


def run(name: str, file: Path) -> None:
    """The rows of one study, into the file; its seconds of processor and of the clock are printed."""
    start = time.perf_counter()
    call = [
        sys.executable,
        "-m",
        "tetravit",
        "study",
        name,
        "--small",
        "--device",
        "cpu",
        "--into",
        str(file),
    ]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="studies with commas between them")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--costs", action="store_true", help="count published detectors and segmenters")
    given = parser.parse_args()
    if given.costs:
        for weights in costs.GIGA:
            print(f'    "{weights}": {costs.count(weights) / 1e9:.0f},')
        return
    file = RESULTS / "studies.jsonl"
    file.touch()
    wanted = [name for name in given.only.split(",") if name] or list(STUDIES)
    if not given.tables:
        for name in wanted:
            if name not in read(file):
                run(name, file)
    (RESULTS / "studies.md").write_text(page(read(file)), encoding="utf-8")


if __name__ == "__main__":
    main()
