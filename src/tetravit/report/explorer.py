"""The page on which pictures are dropped and predictions are seen: of a server, and of exports for browsers."""

import base64
import hashlib
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
STYLES = (HERE / "page.css", HERE / "page" / "explorer.css")


class Page(NamedTuple):
    """A document with its style and script inside, and their hashes, as a content security policy names them."""

    text: str
    style_hash: str
    script_hash: str


def explorer(source: str, *, head: str = "", foot: str = "") -> Page:
    """The page, with a script that defines `source`: where predictions come from (see page/explorer.js).

    head, foot: HTML of the document's head and of its last line.
    """
    body = (HERE / "page" / "explorer.html").read_text()
    script = "\n".join(((HERE / "page" / "explorer.js").read_text(), source, "begin();\n"))
    return page(body.replace("<!-- head -->", head).replace("<!-- foot -->", foot), STYLES, script)


def page(body: str, styles: tuple[Path, ...], script: str) -> Page:
    """A document whose marks for style and script are replaced by them."""
    style = "\n".join(file.read_text() for file in styles)
    text = body.replace("/* style */", style).replace("/* script */", script)
    return Page(text, _hash(style), _hash(script))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
