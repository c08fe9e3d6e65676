"""For all tests: a fixed seed, and as many threads as there are cores for each of pytest's workers."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_configure():
    # Of processes that tests start: others are at work beside them.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ["TETRAVIT_PROGRAMS_GB"] = "0"  # tests of kept programs have a folder of their own
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
