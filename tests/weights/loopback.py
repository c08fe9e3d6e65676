"""A real server on loopback, as good or as bad as a test wants it."""

import http.server
import re
import threading

from tetravit.weights import store
from tetravit.weights.download import Patience

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


def get(server, path="/w.pth", **options):
    return store.download(server.url(path), patience=QUICK, **options)


def nothing_kept(server, path="/w.pth"):
    return not store.place(server.url(path)).exists()
