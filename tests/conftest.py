"""For all tests: a fixed seed, one thread for each of pytest's workers, and no imports that a run does not need."""

import os
import re
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


WHOLLY_SLOW = re.compile(r"^pytestmark = pytest\.mark\.(slow|nightly)\b", re.M)


def pytest_ignore_collect(collection_path, config):
    """A file whose tests are all slow is not imported by a plain `pytest`, unless it is named."""
    mark = WHOLLY_SLOW.search(collection_path.read_text()) if collection_path.suffix == ".py" else None
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    if mark and f"not {mark[1]}" in config.getoption("markexpr") and collection_path.resolve() not in named:
        return True
    return None


def pytest_configure():
    # Of processes that tests start: others are at work beside them.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ["TETRAVIT_PROGRAMS_GB"] = "0"  # tests of kept programs have a folder of their own
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
