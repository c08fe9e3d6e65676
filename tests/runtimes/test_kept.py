"""Kept programs: whole or absent, bounded, damaged ones made again, nothing kept where nothing can be written."""

import json
import os
import threading

import pytest

from tetravit.runtimes.parts import kept


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.delenv("TETRAVIT_PROGRAMS_GB", raising=False)
    return tmp_path / "programs"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read():
    assert kept.read("a") is None
    entry, why = kept.write("a", {"graph.onnx": b"graph"}, {"model": "deit_tiny"})
    assert why == ""
    found = kept.read("a")
    assert (found.facts["model"], found.size) == ("deit_tiny", 5)
    assert found.file("graph.onnx").read_bytes() == b"graph"
    assert found.file("other") is None
    assert entry.path == found.path


def test_the_key_depends_on_every_part():
    parts = {"weights": "w", "threads": 2}
    assert kept.key_of(parts) == kept.key_of(dict(reversed(parts.items())))
    assert (
        len({kept.key_of(parts), kept.key_of(parts | {"threads": 1}), kept.key_of(parts | {"more": 0})}) == 3
    )


@pytest.mark.parametrize("damage", ["content", "length", "missing", "record", "no record"])
def test_a_damaged_entry_is_removed_and_written_again(folder, damage):
    kept.write("a", {"graph.onnx": b"graph"}, {})
    file = folder / "a" / "graph.onnx"
    if damage == "content":
        file.write_bytes(b"grapH")
    elif damage == "length":
        file.write_bytes(b"grap")
    elif damage == "missing":
        file.unlink()
    elif damage == "record":
        (folder / "a" / "entry.json").write_text("{")
    else:
        (folder / "a" / "entry.json").unlink()
    assert kept.read("a") is None
    kept.write("a", {"graph.onnx": b"graph"}, {})
    assert kept.read("a").file("graph.onnx").read_bytes() == b"graph"
    assert names(folder) == ["a"]


def test_an_entry_under_another_key_is_none(folder):
    kept.write("a", {"graph.onnx": b"graph"}, {})
    os.rename(folder / "a", folder / "b")
    assert kept.read("b") is None


def test_the_oldest_use_goes_first(folder, monkeypatch):
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "25e-9")
    for i, key in enumerate("ab"):
        kept.write(key, {"graph": bytes(10)}, {})
        os.utime(folder / key / "entry.json", (i, i))
    kept.read("a")
    kept.write("c", {"graph": bytes(10)}, {})
    assert names(folder) == ["a", "c"]
    assert [entry.key for entry in kept.entries()][1:] == ["a"] or kept.entries()[0].key == "c"
    assert sum(entry.size for entry in kept.entries()) == 20


def test_what_is_larger_than_all_room_is_not_kept(folder, monkeypatch):
    kept.write("a", {"graph": bytes(10)}, {})
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "25e-9")
    entry, why = kept.write("b", {"graph": bytes(30)}, {})
    assert (entry, why) == (None, "it has 3e-08 GB, more than TETRAVIT_PROGRAMS_GB=2.5e-08")
    assert names(folder) == ["a"]


def test_nothing_is_kept_where_there_is_no_room_at_all(folder, monkeypatch):
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "0")
    assert kept.write("a", {"graph": b"x"}, {}) == (None, "TETRAVIT_PROGRAMS_GB is 0")
    assert not folder.exists()


def test_a_limit_that_is_none(monkeypatch):
    for text in ("much", "-1", "inf", "nan"):
        monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", text)
        with pytest.raises(ValueError) as error:
            kept.limit()
        assert str(error.value) == f"TETRAVIT_PROGRAMS_GB is a number of gigabytes from 0 up; got {text!r}."


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "file"))
    assert kept.read("a") is None
    entry, why = kept.write("a", {"graph": b"x"}, {})
    assert (entry, why) == (None, f"{tmp_path}/file/programs cannot be written: Not a directory")
    assert kept.entries() == []


def test_a_folder_that_is_read_only_is_read(monkeypatch):
    """Whoever runs the tests may be root: the system calls refuse instead."""
    entry, _ = kept.write("a", {"graph": b"x"}, {"choice": 1})

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("utime", "replace", "rename", "mkdir"):
        monkeypatch.setattr(kept.os, name, refused)
    assert kept.read("a").file("graph").read_bytes() == b"x"
    kept.update(entry, {"choice": 2})
    kept.add(entry, "more", b"y")
    assert kept.read("a").facts["choice"] == 1
    assert kept.write("b", {"graph": b"x"}, {})[0] is None


def test_a_program_that_fails_to_be_written_leaves_nothing(folder):
    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError("no form")

    with pytest.raises(RuntimeError):
        kept.write("a", {"graph": fail}, {})
    assert names(folder) == []


def test_facts_and_files_are_added(folder):
    entry, _ = kept.write("a", {"graph": b"x"}, {"model": "m"})
    kept.update(entry, {"choice": "openvino"})
    kept.add(entry, "more", lambda path: path.write_bytes(b"yy"))
    found = kept.read("a")
    assert (found.facts["model"], found.facts["choice"], found.size) == ("m", "openvino", 3)
    assert names(folder / "a") == ["entry.json", "graph", "more"]


def test_a_file_is_discarded(folder):
    entry, _ = kept.write("a", {"graph": b"x", "program": b"yy"}, {})
    kept.discard(entry, "program")
    found = kept.read("a")
    assert (found.size, found.file("program")) == (1, None)
    assert names(folder / "a") == ["entry.json", "graph"]
    kept.discard(entry, "program")


def test_two_at_once_leave_one_whole_entry(folder):
    """Sixteen threads that write the same entry, as processes do: each reads a whole one."""
    ready, wrong = threading.Barrier(8), []

    def work(number):
        ready.wait()
        entry, why = kept.write("a", {"graph": b"x" * 1000}, {"by": number})
        found = kept.read("a")
        if why or entry is None or found is None or found.file("graph").read_bytes() != b"x" * 1000:
            wrong.append((number, why))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert names(folder) == ["a"]


def test_what_a_killed_process_left_is_removed_in_time(folder):
    folder.mkdir()
    for name, age in (("old", 7200), ("new", 0)):
        draft = folder / f"{kept.DRAFT}{name}"
        draft.mkdir()
        os.utime(draft, (os.stat(draft).st_mtime - age,) * 2)
    kept.write("a", {"graph": b"x"}, {})
    assert names(folder) == [f"{kept.DRAFT}new", "a"]


def test_clearing_removes_all(folder):
    for key in "ab":
        kept.write(key, {"graph": bytes(10)}, {})
    (folder / "c").mkdir()
    (folder / f"{kept.DRAFT}d").mkdir()
    assert kept.clear() == (2, 20)
    assert names(folder) == []
    assert kept.clear() == (0, 0)


def test_entries_are_data(folder):
    kept.write("a", {"graph": b"x"}, {"model": "m"})
    record = json.loads((folder / "a" / "entry.json").read_text())
    assert record["files"] == {"graph": {"bytes": 1, "sha256": kept._hash(folder / "a" / "graph")}}
