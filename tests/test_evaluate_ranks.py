"""Protocols of features on two ranks of real processes give the scores of one."""

import json
import multiprocessing
import os
import socket

import pytest
import torch
from tests.test_dino_runs import RECIPE

from tetravit.protocols import PROTOCOLS
from tetravit.recipe import loads
from tetravit.runs.build import build
from tetravit.world import world

pytestmark = pytest.mark.nightly

PROTOCOL_OPTIONS = {
    "knn": {"ks": (1, 5, 20), "images_per_class": 3},
    "linear": {"epochs": 3, "rates": (0.01, 1.0)},
    "linear, augmented": {
        "features": "augmented",
        "augment": "crop(32, (0.5, 1.0))",
        "epochs": 3,
        "rates": (0.01, 1.0),
        "batch_size": 16,
    },
}


def scores(name):
    """Scores of fresh weights by every protocol, on the ranks of this process's environment."""
    torch.set_num_threads(1)
    found = {}
    with world("cpu") as ranks:
        objects = build(loads(RECIPE, ["data.options={fraction = 0.05}"]), ranks)
        model = objects.task.weights().eval()
        for what, options in PROTOCOL_OPTIONS.items():
            row = PROTOCOLS[what.split(",")[0]]
            with torch.inference_mode():
                result = row(row.Config(protocol=row.name, **options)).score(model, objects.loaders)
            found[what] = {**result.values, "count": result.findings["count"]}
    name.write_text(json.dumps(found))


def one_of(rank, port, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    scores(folder / f"{rank}.json")


def test_two_ranks_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_of, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    scores(tmp_path / "one.json")
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "0", "1"))
    assert one["knn"]["count"] == 359
    assert first == second
    for what, values in one.items():
        assert first[what] == pytest.approx(values, abs=1.01 / 359 if "augmented" in what else 1e-9), what
