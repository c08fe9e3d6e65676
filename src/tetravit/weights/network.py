"""Connect to a server within a few seconds, or report the cause of failure."""

import errno
import queue
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_S = 3.5  # for name resolution and connecting together: SYNs are repeated after 1 and 3 s
NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)


class Unreached(OSError):
    """No connection to a server: unresolved name, no route, connection refused or no response.

    host: the server, or the proxy in front of it.
    """

    def __init__(self, host: str, cause: str) -> None:
        super().__init__(f"{host}: {cause}")
        self.host = host


def connect(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    """`socket.create_connection` with a limit of `CONNECT_S`, name resolution included.

    Args:
        address: host and port.
        timeout: of the connected socket, in seconds.
        source_address: as of `socket.create_connection`.

    Raises:
        Unreached: if there is no connection.
    """
    host, port = address
    end = time.monotonic() + CONNECT_S
    cause = "no address"
    for family, kind, protocol, _, place in _resolve(host, port):
        left = end - time.monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(left)
            if source_address:
                connection.bind(source_address)
            connection.connect(place)
            connection.settimeout(timeout if isinstance(timeout, int | float) else None)
            return connection
        except TimeoutError:
            connection.close()
            cause = f"no connection within {CONNECT_S:g} s"
        except OSError as error:
            connection.close()
            if not isinstance(error, ConnectionRefusedError) and error.errno not in NO_ROUTE:
                raise
            cause = error.strerror or type(error).__name__
    raise Unreached(host, cause)


def unreachable(url: str) -> str:
    """Why the server of an https URL, or its proxy, cannot be reached; "": it can."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        connect((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))).close()
    except Unreached as error:
        return str(error)
    return ""


def _resolve(host: str, port: int) -> list[Any]:
    """`socket.getaddrinfo`, which has no timeout, limited to `CONNECT_S`."""
    results: queue.Queue[list[Any] | OSError] = queue.Queue()

    def resolve() -> None:
        try:
            results.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            results.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=resolve, daemon=True).start()
    try:
        result = results.get(timeout=CONNECT_S)
    except queue.Empty:
        raise Unreached(host, f"name not resolved within {CONNECT_S:g} s") from None
    if isinstance(result, OSError):
        raise Unreached(host, result.strerror or str(result))
    return result
