"""Listings of folders are kept: loaded while no folder changes, by all processes; scanned once."""

import multiprocessing
import os
import time

import pytest

from tetravit.data import files, listing
from tetravit.data.datasets.image_folder import ImageFolder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(listing, "WORTH", 3)
    for name in ("cat/deep", "dog"):
        for part in ("train", "val"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}.jpg").write_bytes(b"x")
            (folder / "notes.doc").write_bytes(b"x")
    settle(tmp_path / "set")
    return tmp_path / "set"


def settle(root):
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 100,) * 2)


def view(root, split="train"):
    data = ImageFolder(root, split)
    return [data.key(i) for i in range(len(data))], data.labels.tolist(), data.info.problems


@pytest.fixture
def scans(monkeypatch):
    calls = []
    walk = files.images_below

    def counted(folder, *arguments, **options):
        calls.append(folder)
        return walk(folder, *arguments, **options)

    monkeypatch.setattr("tetravit.data.datasets.image_folder.images_below", counted)
    return calls


def test_a_second_start_lists_nothing(root, scans):
    first = view(root)
    assert len(scans) == 2
    assert view(root) == first
    assert len(scans) == 2
    assert first[0][0] == "cat/deep/0.jpg"
    assert first[2][0].startswith("2 files left out: .doc, not an image; the first: ")
    assert view(root, "val")[0] == first[0]
    assert len(scans) == 4


def test_a_change_in_any_folder_is_seen(root, scans):
    view(root)
    (root / "train" / "cat" / "deep" / "new.jpg").write_bytes(b"x")
    assert len(view(root)[0]) == 9
    assert len(scans) == 4
    view(root)  # the folder is too young to be kept
    assert len(scans) == 6
    settle(root)
    view(root)
    view(root)
    assert len(scans) == 8
    (root / "train" / "dog" / "0.jpg").unlink()
    assert len(view(root)[0]) == 8
    settle(root)
    (root / "train" / "owl").mkdir()
    (root / "train" / "owl" / "0.jpg").write_bytes(b"x")
    assert len(view(root)[0]) == 9


def test_a_damaged_cache_and_one_that_cannot_be_written(root, scans, tmp_path, monkeypatch):
    first = view(root)
    (table,) = (tmp_path / "cache").glob("*/listing.json")
    table.write_text("{")
    assert view(root) == first
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(listing, "CACHE", tmp_path / "file" / "x")
    assert view(root) == first


def scanning(arguments):
    root, log = arguments
    real = files.images_below

    def slow(folder, *rest, **options):
        with open(log, "a") as file:
            file.write("1\n")
        time.sleep(0.1)
        return real(folder, *rest, **options)

    from tetravit.data.datasets import image_folder

    image_folder.images_below = slow
    return view(root)


@pytest.mark.slow
def test_one_process_scans_and_the_others_load(root, tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map(scanning, [(root, tmp_path / "log")] * 3, chunksize=1)
    assert results[0] == results[1] == results[2]
    assert (tmp_path / "log").read_text() == "1\n" * 2
