"""The pages of a server, each one document without requests to anywhere else."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
REPORT = HERE.parent / "report"


@dataclass(frozen=True)
class Page:
    """A document, and the headers that let nothing else be loaded or run."""

    text: str
    headers: dict[str, str]


@cache
def explorer() -> Page:
    """The page to explore models with."""
    return _page("explorer")


@cache
def reference() -> Page:
    """The page of /openapi.json."""
    return _page("reference")


def _page(name: str) -> Page:
    style = "\n".join(file.read_text() for file in (REPORT / "page.css", HERE / "page" / f"{name}.css"))
    script = (HERE / "page" / f"{name}.js").read_text()
    body = (HERE / "page" / f"{name}.html").read_text()
    text = body.replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self';"
        " img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
    return Page(text, {"content-security-policy": policy, "cache-control": "no-cache"})


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
