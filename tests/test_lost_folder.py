"""A run whose folder is deleted or can no longer be written stops, with its weights elsewhere."""

import shutil

import pytest
from tests.test_train import Listener, small

from tetravit.models import load
from tetravit.runs import train

pytestmark = pytest.mark.slow  # whole runs and other processes


class At(Listener):
    """Does something to the run's folder when a step is logged."""

    def __init__(self, step, act):
        super().__init__()
        self.at, self.act = step, act

    def step(self, record):
        if record["step"] == self.at:
            self.act()


@pytest.fixture
def fallback(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_FALLBACK", str(tmp_path / "rescue"))
    return tmp_path / "rescue" / "tetravit-fallback"


def lost(recipe, folder, act):
    listener = At(2, act)
    with pytest.raises(ValueError) as error:
        train(recipe, folder, reporters=[listener])
    return str(error.value), listener


def test_a_deleted_folder_stops_the_run_after_three_saves(tmp_path, fallback):
    folder = tmp_path / "run"
    recipe = small(run__save_steps=1, run__log_steps=1, run__evaluate_epochs=0, run__save_in_background=False)
    text, listener = lost(recipe, folder, lambda: shutil.rmtree(folder))
    place = next(fallback.iterdir())
    assert text == (
        f"The run folder {folder} has vanished; the weights of step 4 are in {place}. Restore the folder and"
        f" continue with: tetravit train --resume {folder}"
    )
    assert sum("Could not save step_" in note for note in listener.notes) == 3
    assert (place / "checkpoints/step_000004").is_dir()
    assert load(place / "last.safetensors").num_classes == 10


def test_a_folder_that_cannot_be_written_is_put_back_and_the_run_continues(tmp_path, fallback):
    folder = tmp_path / "run"
    recipe = small(run__save_steps=1, run__log_steps=1, run__evaluate_epochs=0, run__save_in_background=False)

    def spoil():
        shutil.rmtree(folder / "checkpoints")
        (folder / "checkpoints").write_text("no folder")

    text, _ = lost(recipe, folder, spoil)
    place = next(fallback.iterdir())
    assert text.startswith(
        f"The run folder {folder} cannot be written (Not a directory); the weights of step "
    )
    assert " Make it writable and continue with: " in text
    (folder / "checkpoints").unlink()
    shutil.copytree(place / "checkpoints", folder / "checkpoints")
    listener = Listener()
    train(recipe, folder, continuing=True, reporters=[listener])
    assert dict(listener.plans[0].lines)["resumed"] == "after step 4"
    train(recipe, tmp_path / "straight", reporters=[])
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "straight")]
    assert logs[0] == logs[1]


def test_a_run_that_ends_without_its_folder_leaves_its_weights(tmp_path, fallback):
    folder = tmp_path / "run"
    text, _ = lost(
        small(run__log_steps=1, run__save_steps=0, run__save_epochs=0), folder, lambda: shutil.rmtree(folder)
    )
    assert text.startswith(f"The run folder {folder} has vanished; the weights of step 8 are in {fallback}")
