"""Shards behind a web server and in buckets: faults are tried again, then the run stops; the cache stays bounded."""

import errno
import hashlib
import http.server
import multiprocessing
import os
import pathlib
import threading
import time
import urllib.parse

import pytest
import torch
from tests.data.test_shards import dataset

from tetravit.data import storage
from tetravit.data.config import DataConfig
from tetravit.data.layouts import write_shapes
from tetravit.data.loader import make_train_loader
from tetravit.data.shards import cache as caching
from tetravit.data.shards import source as sources
from tetravit.data.shards.cache import ShardCache
from tetravit.data.shards.pack import pack
from tetravit.data.storage import StorageError, storage_of, web
from tetravit.data.storage.base import Tries


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder, by ranges; the next answers may be spoilt: server.faults holds one word for each."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.path = urllib.parse.unquote(self.path)
        self.server.requests.append((self.path, self.headers.get("Range")))
        fault = self.server.faults.pop(0) if self.server.faults and ".tar" in self.path else ""
        if "list" in self.path.partition("?")[2]:
            return self.listing()
        file = self.server.folder + self.path.removeprefix("/bucket")
        if fault == "503":
            return self.reply(503, b"busy" if body else b"")
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if not os.path.isfile(file):
            return self.reply(404, b"no" if body else b"", length=2)
        data = pathlib.Path(file).read_bytes()
        status, ranges = 200, self.headers.get("Range")
        whole = len(data)
        if ranges and fault != "whole":
            first, _, last = ranges.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1], 206
        if fault == "wrong":
            data = bytes([data[0] ^ 255]) + data[1:-1] + bytes([data[-1] ^ 255])
        if fault == "delay":
            time.sleep(0.6)
        headers = {"ETag": '"1"', "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT"}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{whole}"
        if fault == "drop":
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(2)
        return self.reply(status, data if body else b"", headers, len(data))

    def listing(self):
        """Names in a bucket, as S3, Google Cloud and Azure list them; here of an empty folder alone."""
        azure = "comp=list" in self.path
        kind = ("EnumerationResults", "<Blobs/><NextMarker/>") if azure else ("ListBucketResult", "")
        body = f'<?xml version="1.0"?><{kind[0]}>{kind[1]}</{kind[0]}>'.encode()
        return self.reply(200, body, {"Content-Type": "application/xml"})

    def reply(self, status, data, headers=(), length=None):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    for _ in write_shapes(root, train=24, val=2, size=64):
        pass
    pack(root / "folders", root / "shards", shard_size=64_000, workers=1)
    return root / "shards"


@pytest.fixture
def server(shards, monkeypatch, tmp_path):
    monkeypatch.setattr(storage.base, "TRIES", Tries(count=5, seconds=0.4, pause=0.001))
    monkeypatch.setattr(web, "TRIES", storage.base.TRIES)
    monkeypatch.setattr(sources, "INDEXES", tmp_path / "indexes")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.folder, server.faults, server.requests = str(shards), [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    web._forget()
    server.shutdown()
    server.server_close()


def images(dataset):
    return [dataset[i].image for i in range(len(dataset))]


@pytest.mark.slow
def test_ranges(server, shards):
    local, remote = dataset(shards), dataset(server.url)
    assert all(torch.equal(a, b) for a, b in zip(images(local), images(remote), strict=True))
    assert remote[0].name == f"{server.url}/train-000000.tar/{local.key(0)}"
    assert [remote.key(i) for i in range(3)] == [local.key(i) for i in range(3)]
    ranges = [asked for path, asked in server.requests if path.endswith(".tar")]
    assert len(ranges) == len(local) + 1 + 3
    assert all(asked is not None for asked in ranges)
    before = len(server.requests)
    dataset(server.url)
    assert [path for path, _ in server.requests[before:]] == ["/shards.json"]  # the index is kept


@pytest.mark.parametrize("fault", ["503", "drop", pytest.param("delay", marks=pytest.mark.slow), "wrong"])
def test_faults_are_tried_again_and_then_stop_the_run(server, shards, fault, tmp_path):
    local = dataset(shards)
    for cache in ("", str(tmp_path / fault)):
        remote = dataset(server.url, options={"cache": cache})
        server.faults = [fault] * 2
        assert torch.equal(remote[0].image, local[0].image)
    remote = dataset(server.url)
    server.faults = [fault] * 5
    with pytest.raises(StorageError) as error:
        remote[0]
    cause = {
        "503": "HTTP 503",
        "drop": "the connection broke off",
        "delay": "timed out",
        "wrong": "its bytes are not those of the index",
    }[fault]
    assert str(error.value) == f"Cannot read {server.url}/train-000000.tar after 5 tries ({cause})."
    server.faults = []
    assert torch.equal(remote[0].image, local[0].image)


def test_a_run_stops_and_counts_no_bad_image(server):
    config = DataConfig(
        name="shards", root=server.url, batch_size=8, image_size=32, on_bad="skip", bad_limit=1.0, workers=0
    )
    loader = make_train_loader(config, seed=0)
    server.faults = ["503"] * 5
    with pytest.raises(StorageError, match=r"^Cannot read http://.*\.tar after 5 tries \(HTTP 503\)\.$"):
        next(loader.batches())
    assert loader.bad == {}
    assert len(next(loader.batches())[0].images) == 8


def test_servers_without_ranges_wrong_paths_and_redirects(server, shards):
    file = f"{server.url}/train-000000.tar"
    data = (shards / "train-000000.tar").read_bytes()
    assert storage_of(file).read_range(file, 10, 50) == data[10:60]
    server.faults = ["whole"]
    assert storage_of(file).read_range(file, 10, 50) == data[10:60]
    assert storage_of(file).stat(file).size == len(data)
    assert not storage_of(file).exists(f"{server.url}/none")
    server.faults = ["redirect"]
    with pytest.raises(OSError, match="a redirect leads to file://"):
        storage_of(file).read(file)
    with pytest.raises(ValueError, match=r"^There is no shards.json in 'http://.*/none'"):
        dataset(f"{server.url}/none")
    with pytest.raises(OSError, match="a web server does not list folders"):
        storage_of(file).list(server.url)


def test_the_cache_is_bounded_and_each_shard_is_fetched_once(server, shards, tmp_path):
    local, folder = dataset(shards), tmp_path / "cache"
    sizes = [shard.size for shard in local.source.shards]
    limit = sizes[0] + sizes[1] + 1000
    remote = dataset(server.url, options={"cache": str(folder), "cache_gb": limit / 1e9})
    for _ in range(2):
        for i in range(len(remote)):
            assert torch.equal(remote[i].image, local[i].image)
            assert sum(f.stat().st_size for f in folder.iterdir()) <= limit
    small = dataset(server.url, options={"cache": str(tmp_path / "small"), "cache_gb": 1e-6})
    assert torch.equal(small[0].image, local[0].image)  # larger than the cache: by ranges
    with pytest.raises(ValueError) as error:
        dataset(server.url, options={"cache": "x", "cache_gb": 0.0})
    assert str(error.value) == "cache_gb is above 0; got 0.0."


def fetch(arguments):
    url, folder, size, sha256 = arguments
    file = ShardCache(folder, 10**9).fetch(url, size, sha256)
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()


def test_several_processes_fetch_a_shard_once(server, shards, tmp_path):
    data = (shards / "train-000000.tar").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    job = (f"{server.url}/train-000000.tar", str(tmp_path / "cache"), len(data), digest)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(fetch, [job] * 8) == [digest] * 8
    assert len([path for path, _ in server.requests if path.endswith(".tar")]) == 1
    (tmp_path / "cache" / "0-x.tar.part").write_bytes(b"of a process that was killed")
    cache = ShardCache(tmp_path / "cache", len(data) + 10)
    cache._shrink(0)
    assert [f.name for f in (tmp_path / "cache").iterdir() if not f.name.startswith(".")] == []


def test_a_cache_disk_that_fills(server, shards, tmp_path, monkeypatch, caplog):
    local, folder = dataset(shards), tmp_path / "cache"
    sizes = [shard.size for shard in local.source.shards]
    room = sizes[0] + sizes[1] // 2  # bytes of a stand-in for a small disk

    def fallocate(file, offset, size):
        used = sum(f.stat().st_size for f in folder.iterdir())
        if used + size > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.truncate(file, size)

    monkeypatch.setattr(caching.os, "posix_fallocate", fallocate)
    remote = dataset(server.url, options={"cache": str(folder)})
    for i in range(len(remote)):
        assert torch.equal(remote[i].image, local[i].image)
    assert len([f for f in folder.iterdir() if f.suffix == ".tar"]) == 1
    room = 10
    for file in folder.iterdir():
        file.unlink()
    remote = dataset(server.url, options={"cache": str(folder)})
    assert torch.equal(remote[0].image, local[0].image)
    assert caplog.messages == [
        f"The cache of shards {folder} cannot be written (no space left on device); images are read from their"
        " storage."
    ]


def test_buckets(server, shards, monkeypatch):
    pytest.importorskip("obstore")
    from tetravit.data.storage import object_store

    object_store._stores.clear()
    monkeypatch.setattr(object_store, "TRIES", storage.base.TRIES)
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "here",
    }.items():
        monkeypatch.setenv(name, value)
    local, remote = dataset(shards), dataset("s3://bucket")
    assert remote.source.folder == "s3://bucket"
    assert torch.equal(remote[0].image, local[0].image)
    assert storage_of("s3://bucket/x").stat("s3://bucket/train.index").size == 24 * 24
    with pytest.raises(FileNotFoundError):
        storage_of("s3://bucket/x").read("s3://bucket/none")
    server.faults = ["503"] * 5
    with pytest.raises(
        StorageError, match=r"^Cannot read s3://bucket/train-000000.tar after 5 tries \(.*\)\.$"
    ):
        remote[0]
    object_store._stores.clear()


GOOGLE = {"GOOGLE_BASE_URL": "{}", "GOOGLE_SKIP_SIGNATURE": "true", "ALLOW_HTTP": "true"}
AZURE = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account",
    "AZURE_STORAGE_ENDPOINT": "{}",
    "AZURE_SKIP_SIGNATURE": "true",
    "ALLOW_HTTP": "true",
}


@pytest.mark.slow
@pytest.mark.parametrize(("url", "environment"), [("gs://bucket", GOOGLE), ("az://bucket", AZURE)])
def test_google_cloud_and_azure(server, shards, monkeypatch, url, environment):
    pytest.importorskip("obstore")
    from tetravit.data.storage import object_store

    object_store._stores.clear()
    monkeypatch.setattr(object_store, "TRIES", storage.base.TRIES)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(server.url))
    local, remote = dataset(shards), dataset(url)
    assert all(torch.equal(a, b) for a, b in zip(images(local), images(remote), strict=True))
    assert storage_of(url).stat(f"{url}/train.index").size == 24 * 24
    assert not storage_of(url).exists(f"{url}/none/at/all")
    server.faults = ["503", "drop"]
    assert torch.equal(remote[0].image, local[0].image)
    server.faults = ["503"] * 5
    with pytest.raises(StorageError, match=rf"^Cannot read {url}/train-000000.tar after 5 tries \(.*\)\.$"):
        remote[0]
    server.faults = []
    object_store._stores.clear()


def test_buckets_without_the_package(monkeypatch):
    from tetravit.data.storage import object_store

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(object_store.importlib, "import_module", missing)
    with pytest.raises(ValueError) as error:
        storage_of("gs://bucket/x").read("gs://bucket/x")
    assert str(error.value) == (
        "Buckets are read through the package obstore: pip install 'tetravit[remote]'."
    )


def test_a_disk_with_faults_is_no_bad_image(tmp_path, monkeypatch):
    from tetravit.data.decode import BadImage, file_bytes
    from tetravit.data.storage.local import LocalStorage

    monkeypatch.setattr(storage.base, "TRIES", Tries(count=3, pause=0.001))
    (tmp_path / "a.jpg").write_bytes(b"x")

    def faulty(self, file):
        raise OSError(errno.EIO, "Input/output error", file)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", faulty)
        with pytest.raises(StorageError) as error:
            file_bytes(tmp_path / "a.jpg")
    assert str(error.value) == f"Cannot read {tmp_path / 'a.jpg'} after 3 tries (input/output error)."
    with pytest.raises(BadImage, match="no such file or directory"):
        file_bytes(tmp_path / "b.jpg")
