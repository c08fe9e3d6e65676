"""The self-test that users run, and a run on Ray Train."""

import pytest
from tests.test_train import small


def test_the_selftest_takes_a_new_folder(ask, tmp_path):
    answer = ask("selftest", "resume", "--dir", tmp_path)
    assert (answer.code, answer.err) == (
        2,
        f"tetravit selftest resume: {tmp_path} exists already; --dir takes a new folder.\n",
    )


@pytest.mark.nightly
def test_the_selftest_of_resuming_passes(ask, tmp_path):
    answer = ask("selftest", "resume", "--dir", tmp_path / "new", "--kills", "2")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("2 kills, ")
    assert answer.out.endswith("the end is equal to the bit to that of an undisturbed run.\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.nightly
def test_a_run_on_ray(tmp_path):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.train.torch")
    from tetravit.bridges.ray import train_on_ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        recipe = small(epochs=1)
        train_on_ray(recipe, tmp_path / "run", workers=2, use_gpu=False, storage_path=str(tmp_path / "ray"))
    finally:
        ray.shutdown()
    assert (tmp_path / "run" / "last.safetensors").exists()
