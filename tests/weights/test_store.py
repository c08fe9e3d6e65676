"""Names and mirrors, licences, hashes and bundles: what lies between a name and a file."""

import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from loopback import QUICK, answer, get

from tetravit import weights
from tetravit.weights import bundle, store
from tetravit.weights.base import Checkpoint, Source
from tetravit.weights.download import Unavailable
from tetravit.weights.fileformat import BadFile, Header, save


def row(server, name="xcit_nano_12_p16.test", *paths, commercial=True, **facts):
    model, tag = name.split(".")
    return Checkpoint(
        model,
        tag,
        tuple(Source(server.url(p), "official", **facts) for p in paths or ("/w.pth",)),
        data="-",
        licence="Apache-2.0" if commercial else "CC-BY-NC-SA-4.0",
        commercial=commercial,
    )


@pytest.fixture
def listed(monkeypatch):
    def add(*rows):
        monkeypatch.setattr(weights, "CHECKPOINTS", {**weights.CHECKPOINTS, **{r.name: r for r in rows}})

    return add


NAME = "xcit_nano_12_p16.test"


def test_a_mirror_helps_out(server, body, listed, capsys):
    listed(row(server, NAME, "/gone.pth", "/bad.pth", "/w.pth"))
    server.behave["/gone.pth"] = lambda h, n: answer(h, b"", status=404)
    server.behave["/bad.pth"] = lambda h, n: answer(h, b"no weights")
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    got = store.fetch(NAME, patience=QUICK)
    assert got.source.url == server.url("/w.pth")
    assert got.path.read_bytes() == body
    assert f"Trying {server.url('/w.pth')}." in capsys.readouterr().err
    assert store.fetch(NAME) == got
    assert len(server.requests) == 3


def test_an_unknown_name_is_named(server):
    with pytest.raises(ValueError) as error:
        store.fetch("xcit_nano_12_p16.in1")
    assert str(error.value) == "Unknown weights 'xcit_nano_12_p16.in1'. Did you mean 'xcit_nano_12_p16.in1k'?"


def test_offline(server, body, listed, monkeypatch):
    listed(row(server))
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1")
    with pytest.raises(Unavailable) as error:
        store.fetch(NAME)
    assert str(error.value) == (
        f"{NAME} is not in {store.home()}, and TETRAVIT_OFFLINE is set. "
        f"On a connected machine: `tetravit weights bundle {NAME}`."
    )
    with pytest.raises(Unavailable, match=r"is not in .*, and TETRAVIT_OFFLINE is set"):
        get(server)
    assert server.requests == []
    monkeypatch.setenv("TETRAVIT_OFFLINE", "0")
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    got = store.fetch(NAME)
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1")
    assert store.fetch(NAME) == got


def test_google_drive_needs_a_person(server):
    with pytest.raises(Unavailable) as error:
        store.fetch("twins_svt_small.ade20k_upernet")
    assert str(error.value) == (
        "twins_svt_small.ade20k_upernet is on Google Drive, which scripts cannot fetch: download "
        "https://drive.google.com/file/d/18OhG0sbAJ5okPj0zn-8YTydKG9jS8TUx/view in a browser, then "
        "`tetravit weights import FILE --as twins_svt_small.ade20k_upernet`."
    )


def test_a_licence_is_accepted_once(server, body, listed):
    listed(row(server, NAME, commercial=False))
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    with pytest.raises(ValueError) as error:
        store.fetch(NAME)
    assert str(error.value) == (
        f"{NAME} is licensed CC-BY-NC-SA-4.0, which forbids commercial use. "
        "Accept that once with --accept-license (in Python: accept_license=True)."
    )
    assert server.requests == []
    store.fetch(NAME, accept_license=True)
    store.fetch(NAME)
    store.check_license(weights.CHECKPOINTS["gcvit_tiny.in1k"])


def test_every_changed_byte_is_found(server, body, listed):
    listed(row(server))
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    path = store.fetch(NAME).path
    mine = store.imported("xcit_nano_12_p16.mine")
    save(mine, {"weight": torch.ones(4)}, Header("xcit_nano_12_p16"))
    assert store.verify() == [(path, ""), (mine, "")]
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    mine.write_bytes(mine.read_bytes()[:-1] + b"\x00")
    assert store.verify([NAME, "xcit_nano_12_p16.mine"]) == [
        (path, "has changed since it was stored (sha256)"),
        (mine, "tensor 'weight' has changed since it was written (sha256)"),
    ]
    with pytest.raises(ValueError, match=r"x\.y is not in"):
        store.verify(["x.y"])


def test_the_home_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("TETRAVIT_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert store.home() == tmp_path / ".cache" / "tetravit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert store.home() == Path("/c/tetravit")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert store.home() == tmp_path / "Library" / "Caches" / "tetravit"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/l")
    assert store.home() == Path("/l/tetravit/Cache")


@pytest.mark.parametrize("name", ["../x.y", "x", "a.b.c", "a/b.c", ".x", "x."])
def test_names_of_imports_are_checked(name):
    with pytest.raises(ValueError) as error:
        store.imported(name)
    assert str(error.value) == f"Weights are called NAME.TAG, like xcit_nano_12_p16.mine; got {name!r}."


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_bundle_goes_to_another_machine(server, body, listed, monkeypatch, tmp_path, suffix):
    listed(row(server))
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    mine = store.imported("xcit_nano_12_p16.mine")
    mine.parent.mkdir(parents=True)
    save(mine, {"weight": torch.ones(4)}, Header("xcit_nano_12_p16"))
    names = [NAME, "xcit_nano_12_p16.mine"]
    file = bundle.bundle(names, tmp_path / f"b{suffix}", patience=QUICK)
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1")
    assert bundle.unbundle(file) == names
    assert store.fetch(NAME).path.read_bytes() == body
    assert store.fetch("xcit_nano_12_p16.mine").path.read_bytes() == mine.read_bytes()
    assert all(wrong == "" for _, wrong in store.verify())
    assert len(server.requests) == 1


def test_other_suffixes_of_bundles_are_named(server):
    with pytest.raises(ValueError) as error:
        bundle.bundle([], Path("x.rar"))
    assert str(error.value) == "A bundle is a .zip or .tar file; got 'x.rar'."


def hostile(server, folder):
    """Archives that would write elsewhere, and what is said of each."""
    manifest = json.dumps(
        {
            "format": 1,
            "weights": [
                {"name": NAME, "url": server.url("/w.pth"), "file": "w.pth", "size": 1, "sha256": "00"}
            ],
        }
    ).encode()

    def archive(kind, *members):
        path = folder / f"{len(list(folder.iterdir()))}.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("manifest.json", manifest)
                for name, *_ in members:
                    info = zipfile.ZipInfo(name)
                    info.external_attr = (members[0][1] if len(members[0]) > 1 else 0o100644) << 16
                    file.writestr(info, "x")
        else:
            with tarfile.open(path, "w") as file:
                for name, *rest in (("manifest.json",), *members):
                    info = tarfile.TarInfo(name)
                    info.type, info.linkname = (
                        (*rest, tarfile.REGTYPE, "")[:2] if rest else (tarfile.REGTYPE, "")
                    )
                    content = manifest if name == "manifest.json" else b"x"
                    info.size = len(content) if info.type == tarfile.REGTYPE else 0
                    file.addfile(info, io.BytesIO(content))
        return path

    belongs = "does not belong there"
    for kind in ("zip", "tar"):
        for name in ("../../x", "/tmp/x", "files/../x", "files/", "C:\\x", "files/" + "a" * 4096 + "/x"):
            yield archive(kind, (name,)), belongs
        yield archive(kind, ("files/w.pth",), ("files/w.pth",)), "is there twice"
        yield archive(kind, ("files/w.pth",), ("files/more.pth",)), "the manifest differ"
        yield archive(kind), "the manifest differ"
        yield archive(kind, ("files/w.pth",)), "has changed since it was packed"
        yield archive(kind, ("files/e\u0301.pth",), ("files/\u00e9.pth",)), "differ|belong"
    yield archive("zip", ("files/w.pth", 0o120777)), belongs
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        yield archive("tar", ("files/w.pth", kind, "/etc/passwd")), belongs
    other = folder / "plain.zip"
    other.write_bytes(b"PK\x03\x04 no archive")
    yield other, "is no bundle of weights"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_write_nothing(server, listed, tmp_path):
    listed(row(server))
    (tmp_path / "archives").mkdir()
    cases = list(hostile(server, tmp_path / "archives"))
    before = sorted(p for p in tmp_path.rglob("*"))
    for path, text in cases:
        with pytest.raises(BadFile, match=text) as error:
            bundle.unbundle(path)
        assert str(error.value).startswith(str(path))
    inside = store.home()
    after = sorted(p for p in tmp_path.rglob("*") if inside not in p.parents and p != inside)
    assert after == before
    assert list((inside / "weights").iterdir()) == []


def test_a_bundle_cannot_speak_for_another_address(server, listed, tmp_path):
    listed(row(server))
    manifest = {
        "format": 1,
        "weights": [{"name": NAME, "url": "https://evil.example/w.pth", "file": "w.pth", "sha256": "0"}],
    }
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("manifest.json", json.dumps(manifest))
        file.writestr("files/w.pth", "x")
    with pytest.raises(BadFile, match=f"'https://evil.example/w.pth' is not where {NAME} is from"):
        bundle.unbundle(tmp_path / "b.zip")


def test_a_lock_is_free_when_its_holder_is_killed(server, capfd):
    """The child holds the lock and is killed with signal 9; the parent waits for it, then has it."""
    reader, writer = os.pipe()
    path = store.place(server.url("/w.pth"))
    child = os.fork()
    if child == 0:
        with store.lock(path):
            os.write(writer, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    held = []

    def wait():
        with store.lock(path):
            held.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    assert held == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    thread.join(timeout=10)
    assert len(held) == 1
    assert f"tetravit: waiting for process {child}: {path.name}" in capfd.readouterr().err
