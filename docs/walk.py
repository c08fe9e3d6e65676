"""Run pages of docs/tutorials from top to bottom, and write what was printed and drawn into them.

    python docs/walk.py                  every tutorial; minutes
    python docs/walk.py segment          one

A page marks its blocks with comments that no reader sees:

    <!-- run -->              bash: lines that begin with `tetravit`; python: one script, names are kept
    <!-- serve -->            bash: a server, which runs until the page ends
    <!-- request -->          bash or python against that server, on port 8000
    <!-- output -->           text: what the block before printed; `<!-- output 3 4 -->`: its first 3 and last 4 lines
    <!-- picture FILE 3 -->   the image below is this file of the walk, enlarged 3 times

The tests run the same blocks with training cut short, and each night as they are (tests/docs/test_tutorials.py).
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent / "tutorials"
PIECE = re.compile(
    r"^<!-- (?P<mark>run|serve|request|output|picture)(?P<given>[^\n]*?) -->\n"
    r"(?:```(?P<language>\w+)\n(?P<code>.*?)^```$|!\[(?P<about>[^\]]*)\]\((?P<file>[^)]+)\))",
    re.M | re.S,
)
PORT = "8000"  # of the pages; the walk takes a free one
GAP = "..."

Change = Callable[[Sequence[str]], Sequence[str]]  # arguments of a command -> those that are run


@dataclass(frozen=True)
class Piece:
    """A marked block or picture of a page."""

    mark: str
    given: list[str]
    language: str
    code: str
    file: str
    place: tuple[int, int]  # of the code or the file name in the text

    @property
    def key(self) -> tuple[str, str]:
        return self.mark, self.language


def pieces(text: str) -> list[Piece]:
    """The marked pieces of a page in their order."""
    found = []
    for match in PIECE.finditer(text):
        group = "code" if match["code"] is not None else "file"
        values = (match["language"] or "", match["code"] or "", match["file"] or "")
        found.append(Piece(match["mark"], match["given"].split(), *values, match.span(group)))
    return found


class Walk:
    """A page being run in the working directory."""

    def __init__(self, change: Change = lambda arguments: arguments) -> None:
        self.change = change
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.port = ""
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "Walk":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def run(self, piece: Piece) -> str:
        """What a block prints.

        Raises:
            RuntimeError: if a command fails, with its output.
        """
        if piece.mark == "serve":
            return self._serve(piece.code)
        code = piece.code.replace(f":{PORT}", f":{self.port}") if piece.mark == "request" else piece.code
        if piece.language == "python":
            with _captured() as printed:
                exec(compile(code, "page", "exec"), self.names)
            return _shown(printed.getvalue())
        run = self._curl if piece.mark == "request" else self._command
        outputs = [run(shlex.split(line, comments=True)) for line in code.splitlines()]
        return _shown(
            "".join(outputs).replace(f":{self.port}", f":{PORT}") if self.port else "".join(outputs)
        )

    def _command(self, words: Sequence[str]) -> str:
        from tetravit.cli import main

        if words[0] != "tetravit":
            raise RuntimeError(f"A block runs tetravit alone; got {words[0]!r}.")
        with _captured() as printed:
            try:
                main(list(self.change(words[1:])))
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
        if code != 0:
            raise RuntimeError(f"{shlex.join(words)}: exit code {code}\n{printed.getvalue()}")
        return printed.getvalue()

    def _curl(self, words: Sequence[str]) -> str:
        done = subprocess.run([*words, "--silent", "--fail"], capture_output=True, text=True, check=True)
        return done.stdout if done.stdout.endswith("\n") or not done.stdout else done.stdout + "\n"

    def _serve(self, line: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        words = [self.port if word == PORT else word for word in shlex.split(line, comments=True)[1:]]
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder, "printed")
        printed = self.stack.enter_context(file.open("w", encoding="utf-8"))
        command = [sys.executable, "-m", "tetravit", *words]
        server = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        self.stack.callback(server.wait)
        self.stack.callback(server.terminate)
        end = time.monotonic() + 60
        while not _ready(self.port):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{line}: {file.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        return _shown(file.read_text(encoding="utf-8").replace(f":{self.port}", f":{PORT}"))


def shape(line: str) -> str:
    """A line of output without what differs between machines: numbers, names of shapes, widths of columns."""
    line = re.sub(r"\b(circle|ring|moon|square|bar|cross|triangle|star)\b", "shape", line)
    line = re.sub(r"-?\d[\d.,]*(e-?\d+)?", "0", line)
    return re.sub(r"\s+", " ", re.sub(r"[\u2500-]{2,}", "-", line)).strip()


def differences(shown: str, printed: str) -> list[str]:
    """Lines of a page that were not printed, in this order; `...` stands for any lines."""
    lines = iter([shape(line) for line in printed.splitlines()])
    return [line for line in shown.splitlines() if line != GAP and shape(line) not in lines]


def cut(printed: str, given: Sequence[str]) -> str:
    """The first and last lines that a page shows."""
    lines = printed.splitlines()
    if given:
        first, last = (int(number) for number in given)
        if len(lines) > first + last:
            lines = [*lines[:first], GAP, *lines[len(lines) - last :]]
    return "".join(f"{line}\n" for line in lines)


def write(page: Path, report: Callable[[str], object] = print) -> None:
    """Run a page and write its outputs and pictures."""
    text, home = page.read_text(encoding="utf-8"), Path.cwd()
    parts: list[str] = []
    end, printed = 0, ""
    with tempfile.TemporaryDirectory() as folder, Walk() as walk:
        shutil.copytree(Path(__file__).parent / "digits", Path(folder, "docs", "digits"))
        os.chdir(folder)
        try:
            for piece in pieces(text):
                start, stop = piece.place
                if piece.mark == "output":
                    parts += [text[end:start], cut(printed, piece.given)]
                    end = stop
                elif piece.mark == "picture":
                    _enlarge(Path(piece.given[0]), page.parent / piece.file, int((*piece.given, "1")[1]))
                else:
                    begun = time.monotonic()
                    printed = walk.run(piece)
                    report(
                        f"{page.stem}: {piece.code.strip().splitlines()[0]}  {time.monotonic() - begun:.1f} s"
                    )
        finally:
            os.chdir(home)
    page.write_text("".join([*parts, text[end:]]), encoding="utf-8")


def _enlarge(source: Path, target: Path, times: int) -> None:
    from PIL import Image

    with Image.open(source) as image:
        size = (image.width * times, image.height * times)
        target.parent.mkdir(exist_ok=True)
        image.convert("RGB").resize(size, Image.Resampling.NEAREST).save(target, optimize=True)


def _shown(text: str) -> str:
    """Output as a page shows it: no trailing spaces, no empty lines at its ends."""
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[0]:
        del lines[0]
    while lines and not lines[-1]:
        del lines[-1]
    kept = [line for i, line in enumerate(lines) if line or lines[i - 1]]
    return "".join(f"{line}\n" for line in kept)


def _ready(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Both streams in the order in which they were written."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in PAGES.glob("*.md")):
        write(PAGES / f"{name}.md")
