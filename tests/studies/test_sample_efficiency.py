"""The study of small samples: what it trains, what it prints; its kept table."""

import json
from pathlib import Path

import torch

from tetravit.models import create_model
from tetravit.studies.parts.training import digits_recipe
from tetravit.studies.sample_efficiency import TABLE_2, table


def test_the_models_differ_in_little_but_the_mixing():
    with torch.device("meta"):
        sizes = [
            sum(
                p.numel()
                for p in create_model(r.model, num_classes=10, image_size=32, **r.options).parameters()
            )
            for r in table("", "1.0", small=True)
        ]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_a_part_takes_as_many_steps_as_the_whole():
    part, whole = (digits_recipe("deit_tiny", {}, epochs=40, seed=3, fraction=f) for f in (0.1, 1.0))
    assert (part.total_epochs(7), whole.total_epochs(7)) == (400, 40)
    assert part.run.seed == 3


def test_the_rows_are_those_of_the_paper():
    rows = table("", "", small=False)
    assert [(row.fraction, row.expected) for row in rows] == [
        (share, figure) for share, pair in TABLE_2.items() for figure in pair
    ]
    assert rows[1].overrides == ["model.name=convit_small", "data.options.fraction=0.05"]
    assert {row.recipe for row in rows} == {"convit/sample_efficiency"}


def test_the_kept_table_is_what_its_rows_say():
    folder = Path(__file__).parents[2] / "results"
    rows = [json.loads(line) for line in (folder / "sample_efficiency.jsonl").read_text().splitlines()]
    assert {(row["model"], row["fraction"]) for row in rows} == {
        (m, f) for m in ("convit_tiny", "deit_tiny") for f in (0.1, 1.0)
    }
    assert {len(row["top1"]) for row in rows} == {3}
    lines = [
        f"| {row['model']} | {row['params']:,} | {row['images']} | {row['steps']} | {row['mean']:.1f} |"
        f" {row['spread']:.1f} | {len(row['top1'])} |"
        for row in rows
    ]
    text = (folder / "README.md").read_text()
    assert "\n".join(lines) in text
