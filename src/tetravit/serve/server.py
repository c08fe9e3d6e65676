"""The server process: socket, models, and a shutdown that finishes every accepted request."""

import errno
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tetravit.runtimes.base import needs
from tetravit.serve.limits import Limits

DRAIN_S = 0.5  # in which a server that shuts down still accepts requests, one per connection
KEEP_ALIVE_S = 15  # of an idle connection
BACKLOG = 512  # connections that wait to be accepted


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, not open yet.

    Raises:
        ValueError: in one line, if the port is taken or the address is not of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is 0 to 65535, 0 for any that is free; got {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only for a socket with an explicit protocol; otherwise small responses wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)  # fails now, not after minutes of loading, if the port is in use
    except (OSError, UnicodeError) as error:
        listener.close()
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            raise ValueError(f"Port {port} of {host} is in use; --port 0 takes a free one.") from None
        if code == errno.EACCES:
            raise ValueError(
                f"Port {port} needs rights that this user lacks; ports from 1024 up do not."
            ) from None
        raise ValueError(f"{host!r} is no address of this machine.") from None
    return listener


def address(listener: socket.socket) -> str:
    """URL of a socket, for a browser."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    weights: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    device: str = "auto",
    exact: bool = True,
    accept_license: bool = False,
    optimized: Callable[[Any], Any] | None = None,
    browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve models until SIGTERM or Ctrl-C; requests that were accepted are finished.

    Args:
        weights: one or several sources for `load`.
        host, port: address; port 0 picks a free one.
        limits: None: the defaults of `Limits`.
        device: auto, cpu, cuda, cuda:N or mps.
        exact: batch only if the outputs are bitwise those of single images.
        optimized: model -> the model on its fastest backend; None: the model as it is.
        browser: open the page in a browser once the models are ready.
        say: receives each message.

    Raises:
        ValueError: in one line, for weights that cannot be loaded or a port that is in use.
    """
    for package in ("starlette", "uvicorn"):
        if why := needs(package, "serve"):
            raise ValueError(f"A server cannot run here: {why}.")
    from tetravit.serve.app import application
    from tetravit.serve.metrics import Metrics
    from tetravit.serve.served import load_all

    limits, metrics = limits or Limits(), Metrics()
    with bound(host, port) as place:
        models = load_all(
            weights,
            limits,
            device=device,
            exact=exact,
            accept_license=accept_license,
            optimized=optimized,
            calls=metrics.call,
        )
        app = application(models, limits, metrics)
        threading.Thread(
            target=_announce, args=(app.service, address(place), browser, say), daemon=True
        ).start()
        _run(app, place, limits, say)


def _announce(service: Any, url: str, browser: bool, say: Callable[[str], None]) -> None:
    """Print the address once every model has run."""
    import time

    while not service.ready:
        if service.draining:
            return
        time.sleep(0.02)
    for served in service.models.values():
        say(f"{served.name}: {served.row.noun}, {served.model.num_classes} classes, {_batches(served)}")
    say(f"Serving at {url} (routes at {url}/docs); Ctrl-C ends it.")
    if browser:
        webbrowser.open(url)


def _batches(served: Any) -> str:
    if not served.batches:
        return "one image per call, as batches would change its last bits"
    most = served.limits.max_batch if served.kind != "segment" else 1
    return f"up to {most} images per call" if most > 1 else "one image per call"


def _run(app: Any, place: socket.socket, limits: Limits, say: Callable[[str], None]) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http="h11",
        ws="none",
        lifespan="on",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(limits.deadline_s) + 5,
    )
    server = uvicorn.Server(config)

    def end(number: int, frame: Any) -> None:
        if app.service.draining:  # the second signal: abort everything, other threads included
            with suppress(OSError, RuntimeError):  # RuntimeError: signal during the first message
                say(f"Ended at once; {app.service.in_flight} requests were not finished.")
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        app.service.draining = True
        timer = threading.Timer(DRAIN_S, lambda: setattr(server, "should_exit", True))
        timer.daemon = True
        timer.start()
        with suppress(OSError):  # standard error may be closed
            say(f"Ends: {app.service.in_flight} requests to finish.")

    server.capture_signals = lambda: _handled(end)
    server.run([place])
    with suppress(OSError):
        say(f"Ended; {app.service.accepted} requests were accepted.")


@contextmanager
def _handled(end: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `end` on SIGTERM and SIGINT; signal handlers exist only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
