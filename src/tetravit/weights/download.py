"""Download one file over http or https, with retries, robust to stalled and misbehaving servers."""

import http.client
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tetravit.files import read_json, write_json
from tetravit.notebook import NotebookBar, in_notebook
from tetravit.weights.fileformat import package_version
from tetravit.weights.network import Unreached, connect

CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Patience:
    """Stall detection and retry limits.

    timeout_s: silence of the server. least_bytes: minimum progress per stall_s seconds. retries: consecutive attempts
    without progress. backoff_s: pause before the first retry, doubled each time. longest_s: maximum pause, whatever
    the server requests.
    """

    timeout_s: float = 30.0
    stall_s: float = 30.0
    least_bytes: int = 30_000
    retries: int = 5
    backoff_s: float = 1.0
    longest_s: float = 60.0


class Unavailable(OSError):
    """A file cannot be downloaded; the text names the URL and the cause."""


class NoNetwork(Unavailable):
    """There is no connection to the server. cause: the host and the error."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(
            f"{url} cannot be fetched: there is no network ({cause}). Bring the file here and "
            "`tetravit weights import FILE --as NAME.TAG`. TETRAVIT_OFFLINE=1 skips the try."
        )
        self.cause = cause


class _Again(Exception):
    """The transfer failed and may be retried. wait_s: the pause requested by the server."""

    def __init__(self, cause: str, wait_s: float = 0.0) -> None:
        super().__init__(cause)
        self.wait_s = wait_s


class _Unreached(_Again):
    """No connection to the server."""


class _Whole(Exception):
    """The partial file is already complete."""


def transfer(url: str, part: Path, *, resumable: bool, patience: Patience) -> None:
    """Download a file into `part`, continuing a partial download of this or an earlier process.

    Failures after a first connection are retried; a failed first connection is not.

    Args:
        url: http or https.
        part: the partial file; a note beside it stores its URL.
        resumable: continue even if the server does not confirm that the file is the same, because its hash is known
            and will be compared.
        patience: retry limits.

    Raises:
        NoNetwork: if there is no connection to the server.
        Unavailable: if the download fails.
    """
    misses, reached = 0, False
    with _bar(part.name.split("_", 1)[-1].removesuffix(".part")) as show:
        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                _request(url, part, resumable, patience, show)
                return
            except _Whole:
                return
            except _Again as error:
                if isinstance(error, _Unreached) and not reached:
                    raise NoNetwork(url, str(error)) from None
                reached = True
                after = part.stat().st_size if part.is_file() else 0
                misses = 0 if after > before else misses + 1
                if misses > patience.retries:
                    raise Unavailable(f"{url} cannot be fetched: {error} ({misses} attempts).") from None
                pause = max(error.wait_s, patience.backoff_s * 2 ** max(0, misses - 1))
                time.sleep(min(pause, patience.longest_s))


def _request(
    url: str, part: Path, resumable: bool, patience: Patience, show: Callable[[int, int | None], None]
) -> None:
    """One request: from the end of `part` if the server still has the same file, else from the start."""
    notes = part.with_name(part.name + ".json")
    noted = read_json(notes)
    have = part.stat().st_size if part.is_file() and noted.get("url") == url else 0
    mark = noted.get("mark", "")
    headers = {"User-Agent": f"tetravit/{package_version()}", "Accept-Encoding": "identity"}
    if have and (mark or resumable):
        headers["Range"] = f"bytes={have}-"
        if mark:
            headers["If-Range"] = mark
    with _open(urllib.request.Request(url, headers=headers), part, patience) as response:
        start = 0
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != have or "Range" not in headers:
                part.unlink(missing_ok=True)
                raise _Again("the server sent another range than requested")
            start = have
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None and total - start > (free := shutil.disk_usage(part.parent).free):
            raise Unavailable(f"{url} has {total} bytes; {part.parent} has room for {free}.")
        etag = response.headers.get("ETag", "")
        mark = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        write_json(notes, {"url": url, "mark": mark})
        with part.open("ab" if start else "wb") as file:
            _pour(response, file, start, total, patience, show)


def _pour(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    size: int,
    total: int | None,
    patience: Patience,
    show: Callable[[int, int | None], None],
) -> None:
    """Copy a response to a file, with stall detection."""
    since, arrived = time.monotonic(), 0
    while True:
        try:
            data = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"the connection broke ({_cause(error)})") from None
        if not data:
            break
        file.write(data)
        size, arrived = size + len(data), arrived + len(data)
        show(size, total)
        if time.monotonic() - since > patience.stall_s:
            if arrived < patience.least_bytes:
                raise _Again(f"only {arrived} bytes came in {patience.stall_s:g} s")
            since, arrived = time.monotonic(), 0
    if total is not None and size < total:
        raise _Again(f"the connection ended after {size} of {total} bytes")


@contextmanager
def _open(
    request: urllib.request.Request, part: Path, patience: Patience
) -> Iterator[http.client.HTTPResponse]:
    """Send a request; retryable errors raise `_Again`, others `Unavailable`."""
    try:
        response = _OPENER.open(request, timeout=patience.timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # no bytes after the partial file: it is complete, or of another file
            have = part.stat().st_size if part.is_file() else -1
            if error.headers and error.headers.get("Content-Range") == f"bytes */{have}":
                raise _Whole from None
            part.unlink(missing_ok=True)
            raise _Again("the server has another file now") from None
        if error.code in (408, 425, 429) or error.code >= 500:
            retry_after = error.headers.get("Retry-After", "") if error.headers else ""
            wait = float(retry_after) if retry_after.isdecimal() else 0.0
            raise _Again(f"HTTP {error.code}", wait) from None
        raise Unavailable(
            f"{request.full_url} cannot be fetched: HTTP {error.code} {error.reason}."
        ) from None
    except Unavailable:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        first = urlsplit(f"//{request.host}").hostname  # the server, or the proxy
        if isinstance(reason, Unreached) and reason.host == first:  # else: the redirecting server was reached
            raise _Unreached(str(reason)) from None
        raise _Again(_cause(error)) from None
    with response:
        yield response


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error) or type(error).__name__


class _Plain(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect


class _Secure(http.client.HTTPSConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect


class _Http(urllib.request.HTTPHandler):
    """http, with the timeout of `connect`."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, req)


class _Https(urllib.request.HTTPSHandler):
    """https, with the timeout of `connect`."""

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Secure, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) URLs only, never from https to http."""

    def http_error_302(
        self, request: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message
    ) -> Any:
        target = headers.get("Location") or headers.get("URI") or ""
        scheme = urlsplit(target).scheme.lower()
        if scheme and (scheme not in ("http", "https") or (request.type == "https" and scheme == "http")):
            fp.close()
            raise Unavailable(f"{request.full_url} cannot be fetched: it redirects to {target!r}.")
        return super().http_error_302(request, fp, code, msg, headers)  # type: ignore[arg-type]

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only (no files, no ftp), with the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Http(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error if it is a terminal; in a notebook below the cell."""
    if not sys.stderr.isatty() and in_notebook():
        shown = NotebookBar(text=f"MiB of {name}")
        yield lambda size, total: shown.update(size >> 20, total=total and total >> 20)
        shown.stop()
        return
    if not sys.stderr.isatty():
        yield lambda size, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn(name),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda size, total: bar.update(task, completed=size, total=total)
