"""Files of a web server, by range requests, with the standard library only. Web servers list no folders."""

import http.client
import io
import os
import threading
import time
import urllib.request
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from tetravit.data.storage.base import TRIES, Entry, Stat, Storage

REDIRECTS = 5
PIECE = 1 << 18
_open = threading.local()  # connections per thread: {(process, scheme, host): connection}


class WebStorage(Storage):
    """Files under http:// and https://. If a server ignores ranges, the part is cut from the whole file.

    Each attempt has a timeout, TETRAVIT_READ_SECONDS; proxies are taken from the environment.
    """

    def list(self, folder: str) -> list[Entry]:
        raise OSError(f"a web server does not list folders: {folder}")

    def open(self, file: str) -> BinaryIO:
        return io.BytesIO(self.read(file))

    def read(self, file: str) -> bytes:
        return _get(file, {})[1]

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        status, data = _get(file, {"Range": f"bytes={offset}-{offset + size - 1}"})
        return data if status == 206 else data[offset : offset + size]

    def stat(self, path: str) -> Stat:
        response = _request("HEAD", path, {}, time.monotonic() + TRIES.seconds)
        response.read()
        return Stat(int(response.headers.get("Content-Length") or 0), 0.0, False)


def _get(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and complete body."""
    deadline = time.monotonic() + TRIES.seconds
    try:
        response = _request("GET", url, headers, deadline)
        pieces = []
        while piece := response.read1(PIECE):
            pieces.append(piece)
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # keeps the connection for the next request
        return response.status, b"".join(pieces)
    except BaseException:
        _forget()  # otherwise the rest of this response would be read as the next one
        raise


def _request(method: str, url: str, headers: dict[str, str], deadline: float) -> http.client.HTTPResponse:
    for _ in range(REDIRECTS):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise OSError(f"a redirect leads to {parts.scheme}://")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
            f"?{parts.query}" if parts.query else ""
        )
        connection, prefix = _connection(parts.scheme, parts.netloc)
        connection.timeout = max(0.01, min(TRIES.seconds, deadline - time.monotonic()))
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request(method, prefix + path, headers={"User-Agent": "tetravit", **headers})
        response = connection.getresponse()
        if response.status in (200, 206):
            return response
        _forget()
        if response.status in (301, 302, 303, 307, 308):
            url = urljoin(url, response.headers.get("Location", ""))
        elif response.status in (404, 410):
            raise FileNotFoundError(2, "No such file", url)
        elif response.status in (401, 403):
            raise PermissionError(13, "Permission denied", url)
        else:
            raise OSError(f"HTTP {response.status}")
    raise OSError("too many redirects")


def _connection(scheme: str, host: str) -> tuple[http.client.HTTPConnection, str]:
    """An open connection of this thread, and the prefix of the request target."""
    table = vars(_open).setdefault("table", {})
    key = (os.getpid(), scheme, host)
    if key not in table:
        proxy = urllib.request.getproxies().get(scheme)
        if proxy and urllib.request.proxy_bypass(host.rpartition("@")[2]):
            proxy = None
        make = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        if proxy is None:
            table[key] = (make(host), "")
        else:
            connection = make(urlsplit(proxy).netloc or proxy)
            if scheme == "https":
                connection.set_tunnel(host)
            table[key] = (connection, "" if scheme == "https" else f"http://{host}")
    return table[key]


def _forget() -> None:
    """Close the connections of this thread."""
    for (pid, *_), (connection, _) in vars(_open).pop("table", {}).items():
        if pid == os.getpid():
            connection.close()


STORAGE = {"http": WebStorage, "https": WebStorage}
