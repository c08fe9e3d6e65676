"""A checkpoint is complete or absent, and a changed byte is named."""

import errno
import json
import os
import random
import shutil

import pytest
import torch

from tetravit.engine import checkpoint
from tetravit.engine.checkpoint import BadCheckpoint, Checkpoints, read
from tetravit.files import check_room


def tensors(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"a": torch.randn(7, 5, generator=generator), "n": torch.tensor(step)},
        "optimizer": {"a/exp_avg": torch.randn(7, 5, generator=generator).T},
    }


def assert_holds(found, step):
    assert found.step == step
    assert found.state["note"] == f"after {step}"
    for part, group in tensors(step).items():
        for name, value in group.items():
            assert torch.equal(found.tensors(part)[name], value)


@pytest.fixture
def said():
    return []


@pytest.fixture
def kept(tmp_path, said):
    made = Checkpoints(tmp_path, run_id="r1", keep=2, say=said.append)
    made.prepare()
    return made


def save(kept, step):
    return kept.save(step, tensors(step), {"note": f"after {step}"})


def test_what_is_saved_comes_back(kept):
    assert kept.latest() is None
    save(kept, 5)
    assert_holds(kept.latest(), 5)


def test_the_newest_stay_and_nothing_else(kept):
    for step in (5, 10, 15, 20):
        save(kept, step)
    assert sorted(p.name for p in kept.folder.iterdir()) == ["step_000015", "step_000020"]


def test_one_is_too_few_to_keep(tmp_path):
    with pytest.raises(ValueError) as error:
        Checkpoints(tmp_path, run_id="r", keep=1)
    assert str(error.value) == "keep is 2 or more, as the newest checkpoint may be incomplete; got 1."


def test_leftovers_go_at_the_start(kept):
    save(kept, 5)
    (kept.folder / ".writing_step_000010").mkdir()
    (kept.folder / ".old_step_000001").mkdir()
    kept.prepare()
    assert [p.name for p in kept.folder.iterdir()] == ["step_000005"]


def test_every_bit_counts(kept, tmp_path):
    folder = save(kept, 5)
    draw = random.Random(0)
    files = sorted(folder.iterdir())
    for _ in range(400):
        file = draw.choice(files)
        whole = file.read_bytes()
        bit = draw.randrange(8 * len(whole))
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoilt)
        with pytest.raises(BadCheckpoint) as error:
            read(folder)
        assert str(error.value).startswith(f"step_000005/{file.name} has changed since it was written")
        file.write_bytes(whole)
    assert_holds(read(folder), 5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "MANIFEST.json"])
def test_a_cut_file_is_named(kept, name, share):
    file = save(kept, 5) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadCheckpoint) as error:
        read(file.parent)
    if name == "MANIFEST.json":
        assert str(error.value) == "step_000005/MANIFEST.json has changed since it was written."
    else:
        got = int(share * len(whole))
        assert str(error.value) == f"step_000005/{name} has {got} bytes instead of {len(whole)}."


def test_missing_and_exchanged_files_are_named(kept):
    first, second = save(kept, 5), save(kept, 10)
    exchanged = (second / "optimizer.safetensors").read_bytes()
    (first / "optimizer.safetensors").write_bytes(exchanged)
    with pytest.raises(BadCheckpoint) as error:
        read(first)
    assert (
        str(error.value)
        == "step_000005/optimizer.safetensors has changed since it was written (sha256 differs)."
    )
    (first / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint) as error:
        read(first)
    assert str(error.value) == "step_000005 is incomplete: model.safetensors is missing."
    (first / "MANIFEST.json").unlink()
    with pytest.raises(BadCheckpoint) as error:
        read(first)
    assert str(error.value) == "step_000005 is incomplete: it has no MANIFEST.json."
    shutil.rmtree(first)
    shutil.copytree(second, first)
    with pytest.raises(BadCheckpoint) as error:
        read(first)
    assert str(error.value) == "step_000005 holds the files of step_000010."
    with pytest.raises(BadCheckpoint) as error:
        read(second, run_id="r2")
    assert str(error.value) == "step_000010 belongs to another run (r1)."


def test_a_damaged_newest_gives_way_with_a_warning(kept, said):
    save(kept, 5)
    file = save(kept, 12) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BadCheckpoint):
        kept.latest(on_corrupt="stop")
    assert_holds(kept.latest(), 5)
    assert said == [
        "step_000012/model.safetensors has changed since it was written (sha256 differs)."
        " Going on from step_000005, 7 steps earlier."
    ]
    save(kept, 12)  # redone: takes the place of the damaged one
    assert_holds(kept.latest(), 12)


def test_all_damaged_is_an_error_and_not_a_fresh_start(kept):
    for step in (5, 10):
        (save(kept, step) / "MANIFEST.json").unlink()
    with pytest.raises(BadCheckpoint) as error:
        kept.latest()
    assert str(error.value) == (
        f"No checkpoint in {kept.folder} is whole: step_000010 is incomplete: it has no MANIFEST.json."
        " step_000005 is incomplete: it has no MANIFEST.json."
    )


class Crash(BaseException):
    """The process ends here."""


CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


def crash_after(monkeypatch, count: int, error: BaseException | None = None) -> list[str]:
    """Let `count` system calls through; the next one, and all after it, do not happen."""
    done: list[str] = []
    for name in CALLS:
        real = getattr(os, name)

        def call(*args, _real=real, _name=name, **kwargs):
            if len(done) >= count:
                raise error or Crash(_name)
            done.append(_name)
            if _name == "write" and len(done) == count:  # the last one writes only half
                return _real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)
    return done


def test_a_crash_at_any_system_call_leaves_a_complete_checkpoint(tmp_path, monkeypatch):
    """keep=2 with 2 there: the calls also cover the removal of the oldest."""
    points, published = 0, 0
    while True:
        run_dir = tmp_path / str(points)
        kept = Checkpoints(run_dir, run_id="r", keep=2, say=lambda text: None)
        kept.prepare()
        save(kept, 5)
        save(kept, 10)
        with monkeypatch.context() as patch:
            crash_after(patch, points)
            try:
                save(kept, 15)
                finished = True
            except Crash:
                finished = False
        after = Checkpoints(run_dir, run_id="r", keep=2, say=pytest.fail)
        after.prepare()
        found = after.latest()
        assert found.step in (10, 15)
        assert_holds(found, found.step)
        assert len([p for p in after.folder.iterdir() if p.name.startswith(".")]) == 0
        assert len(after.steps()) >= 2
        published += found.step == 15
        save(after, 15)
        assert_holds(after.latest(), 15)
        if finished:
            break
        points += 1
    assert points > 20
    assert 1 < published < points


def test_the_files_reach_the_disk_before_the_name(kept, monkeypatch):
    calls = crash_after(monkeypatch, 10_000)
    save(kept, 5)
    order = [c for c in calls if c in ("fsync", "rename")]
    # four files with the manifest, the folder, the name, the folder above
    assert order == ["fsync"] * 5 + ["rename", "fsync"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_disk_costs_no_run(kept, said, monkeypatch, code):
    save(kept, 5)
    for room in range(11):  # the calls up to the one that gives the folder its name
        said.clear()
        with monkeypatch.context() as patch:
            no_room(patch, room, code)
            assert save(kept, 10) is None
        assert said == [
            f"Could not save step_000010: {os.strerror(code)}; step_000005 is kept, the run continues."
        ]
        assert [p.name for p in kept.folder.iterdir()] == ["step_000005"]
    assert save(kept, 10) is not None
    assert_holds(kept.latest(), 10)


def no_room(monkeypatch, room: int, code: int) -> None:
    """After `room` calls that need room, there is none; removing things still works."""
    done: list[str] = []
    for name in ("write", "fsync", "rename", "mkdir"):
        real = getattr(os, name)

        def call(*args, _real=real, **kwargs):
            done.append("")
            if len(done) > room:
                raise OSError(code, os.strerror(code))
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)


def test_a_full_disk_stops_where_that_is_asked_for(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, run_id="r", on_full="stop")
    kept.prepare()
    save(kept, 5)
    no_room(monkeypatch, 3, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        save(kept, 10)
    assert [p.name for p in kept.folder.iterdir()] == ["step_000005"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_start(tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(ValueError) as error:
        check_room(in_the_way / "run", 1)
    assert str(error.value) == f"{in_the_way / 'run'} cannot be written: Not a directory."
    with monkeypatch.context() as patch:
        no_room(patch, 1, errno.EROFS)
        with pytest.raises(ValueError) as error:
            check_room(tmp_path / "run", 1)
    assert str(error.value) == f"{tmp_path / 'run'} cannot be written: Read-only file system."
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 5 * 2**20)
    )
    with pytest.raises(ValueError) as error:
        check_room(tmp_path / "run", 12)
    assert str(error.value) == (
        f"{tmp_path / 'run'} needs about 12 MiB for checkpoints; its disk has 5 MiB free."
    )
    check_room(tmp_path / "a" / "b", 4)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "run").exists()


def test_nothing_is_pickled(kept):
    folder = save(kept, 5)
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    for file in folder.glob("*.json"):
        json.loads(file.read_bytes())
