"""Whatever a server does, the file is right or absent; whatever a process does, the next one goes on."""

import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tetravit import weights
from tetravit.weights import bundle, store
from tetravit.weights.base import Checkpoint, Source
from tetravit.weights.download import Patience, Unavailable
from tetravit.weights.fileformat import BadFile, Header, save

QUICK = Patience(timeout_s=5, stall_s=0.3, least_bytes=2000, retries=3, backoff_s=0.01, longest_s=0.2)


class Server:
    """A real server on loopback. `behave`: path -> function(handler, number of the request)."""

    def __init__(self):
        self.behave, self.requests, outer = {}, [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                count = sum(path == self.path for path, _ in outer.requests)
                self.close_connection = True
                outer.behave[self.path](self, count)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}{path}"


def answer(handler, body, *, status=200, length=None, etag='"1"', send=None, **headers):
    """Serve `body` with ranges; `send`: stop after so many bytes; `length`: what to claim."""
    start = 0
    asked = handler.headers.get("Range")
    if asked and status == 200 and handler.headers.get("If-Range") in (None, etag):
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        status = 206 if start < len(body) else 416
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if status == 416:
            headers["Content-Range"] = f"bytes */{len(body)}"
            body = b""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if etag:
        handler.send_header("ETag", etag)
    handler.send_header("Content-Length", str(len(body[start:]) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body[start:] if send is None else body[start : start + send])


@pytest.fixture(scope="module")
def body():
    file = io.BytesIO()
    torch.save({"model": {"weight": torch.randn(300, 100)}}, file)
    return file.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TETRAVIT_OFFLINE", raising=False)
    server = Server()
    yield server
    server.http.shutdown()


def get(server, path="/w.pth", **options):
    return store.download(server.url(path), patience=QUICK, **options)


def nothing_kept(server, path="/w.pth"):
    return not store.place(server.url(path)).exists()


def test_a_file_is_fetched_once(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    path = get(server)
    assert path.read_bytes() == body
    assert path == store.place(server.url("/w.pth"))
    assert path.name.endswith("_w.pth")
    assert get(server) == path
    assert len(server.requests) == 1
    assert [p.name for p in path.parent.iterdir() if p.suffix in (".part", ".tmp")] == []


def test_a_connection_that_drops_at_ten_points_is_resumed(server, body):
    step = -(-len(body) // 11)
    server.behave["/w.pth"] = lambda h, n: answer(h, body, send=step)
    assert get(server).read_bytes() == body
    assert [r for _, r in server.requests] == [None, *(f"bytes={step * k}-" for k in range(1, 11))]


def test_a_server_without_ranges_starts_again(server, body):
    def behave(handler, n):
        del handler.headers["Range"]
        answer(handler, body, send=None if n == 3 else 1000 * n)

    server.behave["/w.pth"] = behave
    assert get(server).read_bytes() == body


def test_a_file_that_changes_meanwhile_starts_again(server, body):
    other = b"x" * len(body)
    server.behave["/w.pth"] = lambda h, n: (
        answer(h, other, etag='"old"', send=5000) if n == 1 else answer(h, body, etag='"new"')
    )
    assert get(server).read_bytes() == body


def test_another_part_than_asked_for_is_not_appended(server, body):
    def behave(handler, n):
        if n == 2:
            del handler.headers["Range"]
            headers = {"Content_Range": f"bytes 0-{len(body) - 1}/{len(body)}"}
            answer(handler, body, status=206, **headers)
        else:
            answer(handler, body, send=5000 if n == 1 else None)

    server.behave["/w.pth"] = behave
    assert get(server).read_bytes() == body
    assert [r for _, r in server.requests] == [None, "bytes=5000-", None]


def test_without_a_mark_or_a_hash_nothing_is_resumed(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, body, etag=None, send=5000 if n == 1 else None)
    assert get(server).read_bytes() == body
    assert [r for _, r in server.requests] == [None, None]


def test_a_whole_part_of_a_killed_process_is_used(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    part = store.place(server.url("/w.pth"))
    part = part.with_name(part.name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(body)
    part.with_name(part.name + ".json").write_text(json.dumps({"url": server.url("/w.pth"), "mark": '"1"'}))
    assert get(server).read_bytes() == body
    assert server.requests == [("/w.pth", f"bytes={len(body)}-")]


def test_a_length_that_is_too_large_leaves_nothing(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, body, length=len(body) + 100, etag=None)
    with pytest.raises(Unavailable) as error:
        get(server)
    whole = f"the connection ended after {len(body)} of {len(body) + 100} bytes"
    assert str(error.value) == f"{server.url('/w.pth')} cannot be fetched: {whole} (4 attempts)."
    assert nothing_kept(server)


def test_a_length_that_is_too_small_leaves_nothing(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, body, length=len(body) - 100)
    with pytest.raises(BadFile, match=r"w\.pth: the file cannot be read: .* It was not kept\."):
        get(server)
    assert nothing_kept(server)
    with pytest.raises(BadFile, match="sha256"):
        get(server, sha256=hashlib.sha256(body).hexdigest())
    assert nothing_kept(server)


def test_a_wrong_hash_leaves_nothing(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    found = hashlib.sha256(body).hexdigest()
    with pytest.raises(BadFile) as error:
        get(server, sha256="0123abcd")
    assert str(error.value) == (
        f"{server.url('/w.pth')} has sha256 {found}, but 0123abcd is expected; it was not kept."
    )
    assert nothing_kept(server)
    assert get(server, sha256=found[:8]).exists()


def test_the_first_download_is_trusted_and_remembered(server, body):
    other = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(3)}}, other)
    server.behave["/w.pth"] = lambda h, n: answer(h, body if n == 1 else other.getvalue())
    get(server).unlink()
    with pytest.raises(BadFile, match=f"but {hashlib.sha256(body).hexdigest()} is expected; it was not kept"):
        get(server)
    assert nothing_kept(server)


def test_a_page_instead_of_a_file_leaves_nothing(server):
    for path in ("/w.pth", "/w.safetensors"):
        server.behave[path] = lambda h, n: answer(h, b"<html>please log in</html>")
        with pytest.raises(BadFile, match="It was not kept"):
            get(server, path)
        assert nothing_kept(server, path)


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_busy_server_is_asked_again(server, body, status):
    def behave(handler, n):
        if n < 3:
            answer(handler, b"", status=status, etag=None, Retry_After="0")
        else:
            answer(handler, body)

    server.behave["/w.pth"] = behave
    assert get(server).read_bytes() == body


def test_the_pause_a_server_asks_for_is_kept(server, body):
    server.behave["/w.pth"] = lambda h, n: (
        answer(h, b"", status=429, etag=None, Retry_After="3600") if n == 1 else answer(h, body)
    )
    start = time.monotonic()
    get(server)
    assert time.monotonic() - start >= QUICK.longest_s  # not an hour: no longer than we are patient


def test_a_server_that_stays_busy_is_named(server):
    server.behave["/w.pth"] = lambda h, n: answer(h, b"", status=503, etag=None)
    with pytest.raises(Unavailable) as error:
        get(server)
    assert str(error.value) == f"{server.url('/w.pth')} cannot be fetched: HTTP 503 (4 attempts)."


def test_a_missing_file_is_not_asked_for_again(server):
    server.behave["/w.pth"] = lambda h, n: answer(h, b"", status=404, etag=None)
    with pytest.raises(Unavailable) as error:
        get(server)
    assert str(error.value) == f"{server.url('/w.pth')} cannot be fetched: HTTP 404 Not Found."
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "FILE:///x"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_away_from_the_web_is_refused(server, target, status):
    server.behave["/w.pth"] = lambda h, n: answer(h, b"", status=status, Location=target)
    with pytest.raises(Unavailable) as error:
        get(server)
    assert str(error.value) == f"{server.url('/w.pth')} cannot be fetched: it redirects to {target!r}."
    assert nothing_kept(server)


def test_a_redirect_inside_the_web_is_followed(server, body):
    server.behave["/w.pth"] = lambda h, n: answer(h, b"", status=302, Location=server.url("/elsewhere"))
    server.behave["/elsewhere"] = lambda h, n: answer(h, body)
    assert get(server).read_bytes() == body


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "/etc/passwd", "s3://b/k"])
def test_other_urls_are_refused(server, url):
    with pytest.raises(ValueError) as error:
        store.download(url)
    assert str(error.value) == f"Weights are fetched over http or https; got {url!r}."


def test_a_trickle_is_given_up_and_resumed(server, body):
    def behave(handler, n):
        if n == 1:
            handler.send_response(200)
            handler.send_header("ETag", '"1"')
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            for k in range(100):
                handler.wfile.write(body[k : k + 1])
                handler.wfile.flush()
                time.sleep(0.02)
        else:
            answer(handler, body)

    server.behave["/w.pth"] = behave
    start = time.monotonic()
    assert get(server).read_bytes() == body
    assert time.monotonic() - start < 1.5
    assert re.fullmatch(r"bytes=\d+-", server.requests[1][1])


def test_nobody_listens(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(Unavailable, match=r"cannot be fetched: .*refused.* \(4 attempts\)\."):
        get(server)


def test_a_full_disk_is_named(server, body, monkeypatch):
    server.behave["/w.pth"] = lambda h, n: answer(h, body)
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(Unavailable, match=rf"has {len(body)} bytes; .* has room for 100\."):
        get(server)


FETCH = """
import sys
from tetravit.weights import store
print(store.download(sys.argv[1]), flush=True)
"""


def start(server, path="/w.pth"):
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, server.url(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_take_turns_and_a_killed_one_leaves_a_part_to_go_on_with(server, body):
    """The first stalls and is killed with its lock held; of two more, one fetches the rest, one finds it there."""
    half, stalled = len(body) // 2, threading.Event()

    def behave(handler, n):
        if n == 1:
            handler.send_response(200)
            handler.send_header("ETag", '"1"')
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[:half])
            handler.wfile.flush()
            stalled.wait(60)
        else:
            time.sleep(0.3)
            answer(handler, body)

    server.behave["/w.pth"] = behave
    part = store.place(server.url("/w.pth"))
    part = part.with_name(part.name + ".part")
    first = start(server)
    for _ in range(3000):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    stalled.set()
    others = [start(server), start(server)]
    outputs = [p.communicate(timeout=60) for p in others]
    assert [p.returncode for p in others] == [0, 0]
    assert len({out for out, _ in outputs}) == 1
    assert store.place(server.url("/w.pth")).read_bytes() == body
    assert len(server.requests) == 2
    assert re.fullmatch(r"bytes=[1-9]\d*-", server.requests[1][1])


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
        yield archive(kind, ("files/w.pth",), ("files/more.pth",)), "the manifest disagree"
        yield archive(kind), "the manifest disagree"
        yield archive(kind, ("files/w.pth",)), "has changed since it was packed"
        yield archive(kind, ("files/e\u0301.pth",), ("files/\u00e9.pth",)), "disagree|belong"
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
