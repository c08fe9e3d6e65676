"""Steps of a run take the memory of the step before, not new pages of the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, resource, sys, torch
from tetravit.engine.memory import freed_memory_kept
context = freed_memory_kept(torch.device("cpu")) if sys.argv[1] == "kept" else contextlib.nullcontext()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    tensors = [torch.ones(12_000_000) for _ in range(4)]  # 48 MB each
with context:
    for _ in range(6):  # until the heap has its shape
        step()
    before = faults()
    step()
    print(faults() - before)
before = faults()
step()
print(faults() - before)
"""


@pytest.mark.slow  # a process for each setting
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_a_step_takes_the_pages_of_the_step_before():
    def run(how):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return [int(line) for line in done.stdout.split()]

    inside, after = run("kept")
    assert inside < 100
    assert after > 10_000  # given back to the system after the run
    assert run("usual")[0] > 10_000
