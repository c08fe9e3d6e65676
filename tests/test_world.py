"""Who this process is among the processes of a run, by the environment of what started it."""

import pytest

from tetravit import world

SLURM = {
    "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[03-04],gpu9",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_one_process_alone(environment):
    assert world.places() == (0, 0, 1)
    with world.world("cpu") as alone:
        assert (alone.rank, alone.size) == (0, 1)


def test_torchrun_and_ray(environment):
    environment({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"} | SLURM)
    assert world.places() == (3, 1, 4)


def test_slurm_with_a_task_per_device(environment):
    environment(SLURM)
    assert world.places() == (9, 1, 16)
    assert world.os.environ["MASTER_ADDR"] == "gpu03"
    assert world.os.environ["MASTER_PORT"] == "24711"


def test_slurm_with_one_task_is_a_world_of_one(environment):
    environment(SLURM | {"SLURM_NTASKS": "1"})
    assert world.places() == (0, 0, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a1,a2", "a1"),
        ("n[01-04]", "n01"),
        ("n[3,5-6]-ib,x", "n3-ib"),
        ("r1n[12-99],q", "r1n12"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert world.first_host(nodes) == first
