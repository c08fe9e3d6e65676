"""Whatever a server does, the file is right or absent; whatever a process does, the next one goes on."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from loopback import QUICK, answer, get, nothing_kept

from tetravit.weights import store
from tetravit.weights.download import Unavailable
from tetravit.weights.fileformat import BadFile


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
