"""Local files through the menu of storages; a new storage is one new file."""

import io
from types import SimpleNamespace
from typing import ClassVar

import pytest

from tetravit.data import storage
from tetravit.data.config import DataConfig, absolute
from tetravit.data.datasets import DATASETS
from tetravit.data.storage import STORAGE, Entry, Stat, Storage, is_local, scheme_of, storage_of


def test_local_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"abc")
    local = storage_of(str(tmp_path))
    assert local.list(str(tmp_path)) == [Entry("a", True)]
    file = local.join(str(tmp_path), "a", "x.bin")
    assert local.read(file) == local.read(f"file://{file}") == b"abc"
    with local.open(file) as stream:
        assert stream.read(1) == b"a"
    assert local.stat(file).size == 3
    assert not local.stat(file).is_folder
    assert local.stat(str(tmp_path)).is_folder
    assert local.exists(file)
    assert not local.exists(f"{file}2")
    with pytest.raises(FileNotFoundError):
        local.read(f"{file}2")


def test_a_scheme_picks_its_storage():
    assert [scheme_of(p) for p in ("/x", "x", "C:\\x", "s3://b/x", "HF://b")] == [
        "file",
        "file",
        "file",
        "s3",
        "hf",
    ]
    assert is_local("C:\\x")
    assert not is_local("s3://b/x")
    with pytest.raises(ValueError) as error:
        storage_of("ftp://host/x")
    assert str(error.value) == (
        "No storage for 'ftp://host/x': unknown scheme 'ftp'. Known: abfs, abfss, az, file, gs, http, https, s3."
    )


class Shelf(Storage):
    """Files of a dict, by path."""

    files: ClassVar = {"mem://shelf/train/1.txt": b"1"}

    def list(self, folder):
        rest = [
            name.removeprefix(f"{folder}/").split("/") for name in self.files if name.startswith(f"{folder}/")
        ]
        return sorted({Entry(parts[0], len(parts) > 1) for parts in rest})

    def open(self, file):
        if file not in self.files:
            raise FileNotFoundError(file)
        return io.BytesIO(self.files[file])

    def stat(self, path):
        if path in self.files:
            return Stat(len(self.files[path]), 0.0, False)
        if self.list(path):
            return Stat(0, 0.0, True)
        raise FileNotFoundError(path)


def test_another_storage_is_one_entry(monkeypatch):
    monkeypatch.setitem(STORAGE, "mem", Shelf)
    shelf = storage_of("mem://shelf")
    assert shelf.list("mem://shelf") == [Entry("train", True)]
    assert shelf.read("mem://shelf/train/1.txt") == b"1"
    assert shelf.exists("mem://shelf/train")
    assert not shelf.exists("mem://shelf/val")
    assert storage.scheme_of("mem://shelf") == "mem"


def test_roots_of_a_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")

    def root(value):
        return DataConfig(name="image_folder", batch_size=1, root=value).root

    assert root("images") == str(tmp_path / "images")
    assert root("~/images") == "/home/ann/images"
    assert root("/images") == "/images"
    assert root("s3://bucket/x") == "s3://bucket/x"
    assert root(2024) == str(tmp_path / "2024")
    assert root(tmp_path) == str(tmp_path)
    assert root(None) is None
    assert absolute(absolute("x")) == absolute("x")


def test_sets_of_local_files_refuse_a_url():
    with pytest.raises(ValueError) as error:
        DATASETS["coco"]("s3://bucket/x", "train")
    assert (
        str(error.value) == "The data set 'coco' is read from local folders; got data.root='s3://bucket/x'."
    )


class GenericError(Exception):
    """As obstore raises it."""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Error performing PUT http://169.254.169.254/latest/api/token\n\nDebug source: retry_timeout: 180s",
         "no credentials in the environment, and this is no machine of that cloud"),
        ("Account must be specified\n\nDebug source:\nMissingAccount", "account must be specified"),
        ("operation timed out", "timed out"),
    ],
)  # fmt: skip
def test_a_bucket_that_cannot_be_read_is_not_called_missing(monkeypatch, text, cause):
    from tetravit.data.storage import object_store

    def head(path):
        raise GenericError(text)

    monkeypatch.setattr(object_store, "_store", lambda path: (None, "x"))
    monkeypatch.setattr(
        object_store, "_obstore", lambda: SimpleNamespace(head=lambda store, name: head(name))
    )
    with pytest.raises(ValueError) as error:
        object_store.ObjectStore().exists("s3://bucket/x")
    assert str(error.value) == f"Cannot read 's3://bucket/x': {cause}."
