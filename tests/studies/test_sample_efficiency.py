"""The study of small samples: what it trains, what it prints."""

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
