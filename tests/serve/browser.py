"""Chromium without a window, driven over the protocol of its developer tools."""

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--hide-scrollbars"),
]


def program() -> str | None:
    """Where Chromium is; None: it is not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser with one page. The messages of its console and its requests are kept."""

    def __init__(self, folder: Path) -> None:
        path = program()
        assert path
        command = [path, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, start_new_session=True, **quiet)
        place = folder / "DevToolsActivePort"
        wait(lambda: place.exists() and len(place.read_text().splitlines()) == 2, "the browser", 60)
        port = place.read_text().splitlines()[0]
        pages = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json()
        page = next(row for row in pages if row["type"] == "page")
        self.opened = ExitStack()
        self.socket = self.opened.enter_context(
            connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
        )
        self.numbers = itertools.count(1)
        self.console: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self.opened.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def send(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A command of the protocol, and what it gives."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._event(message)

    def _event(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        if message["method"] == "Runtime.exceptionThrown":
            self.console.append(json.dumps(given["exceptionDetails"])[:500])
        if message["method"] == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.console.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")

    def run(self, code: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str, timeout_s: float = 60) -> None:
        """Until an expression is true."""
        wait(lambda: self.run(code), code, timeout_s)

    def open(self, url: str, width: int, height: int = 900, scheme: str = "light") -> None:
        """A page at a size, in a colour scheme."""
        mobile = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def drop(self, file: Path, x: int = 200, y: int = 200) -> None:
        """A file dropped on the page."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key; text: what it types."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def screenshot(self, file: Path) -> None:
        """All of the page as PNG."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))


def wait(test: Any, what: str, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not test():
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.05)
