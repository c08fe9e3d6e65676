"""`run.recompute`: the same losses with less memory, for every family."""

import json
import re

import pytest
from tests.test_train import Listener, small
from tests.toys import TOYS

from tetravit.runs import train

PLAIN = [name for name in TOYS if name in ("xcit_nano_12_p16", "deit_tiny")]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TOYS if name not in PLAIN]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN + SLOW)
def test_losses_stay_and_the_plan_says_the_memory(tmp_path, name):
    options = dict(TOYS[name])
    options.pop("out_blocks", None)
    losses = []
    for recompute in (False, True):
        recipe = small(
            epochs=1, run__recompute=recompute, model__name=name, model__options=options, model__drop_path=0.3,
            run__log_steps=1, optim__ema=0, data__mix="mixup(0.8)", run__evaluate_epochs=0,
        )  # fmt: skip
        listener = Listener()
        folder = tmp_path / str(recompute)
        train(recipe, folder, reporters=[listener])
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([record["loss"] for record in map(json.loads, lines) if record["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    memory = dict(listener.plans[0].lines)["memory"]
    match = re.fullmatch(r"about (\d+) MiB per process \(recomputed\), in place of (\d+) MiB", memory)
    assert match is not None, memory
    assert int(match[1]) <= int(match[2])
