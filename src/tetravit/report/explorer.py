"""The page for interactive predictions, used by the server and by exports for browsers."""

import base64
import hashlib
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
STYLES = (HERE / "page.css", HERE / "page" / "explorer.css")


class Page(NamedTuple):
    """A document with inline style and script, and their hashes for a content security policy."""

    text: str
    style_hash: str
    script_hash: str


def explorer(source: str, *, head: str = "", foot: str = "") -> Page:
    """The page, with a script that defines `source`, the source of predictions (see page/explorer.js).

    head, foot: HTML for the document's head and its last line.
    """
    body = (HERE / "page" / "explorer.html").read_text()
    script = "\n".join(((HERE / "page" / "explorer.js").read_text(), source, "begin();\n"))
    return page(body.replace("<!-- head -->", head).replace("<!-- foot -->", foot), STYLES, script)


def page(body: str, styles: tuple[Path, ...], script: str) -> Page:
    """A document with its placeholders for style and script replaced."""
    style = "\n".join(file.read_text() for file in styles)
    text = body.replace("/* style */", style).replace("/* script */", script)
    return Page(text, _hash(style), _hash(script))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
