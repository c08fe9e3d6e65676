"""The pages of a server, each one document without requests to anywhere else."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tetravit.report import explorer as shared

HERE = Path(__file__).parent / "page"
FOOT = '<a href="/docs">Routes</a> &middot; <a href="/metrics">Metrics</a>'


@dataclass(frozen=True)
class Page:
    """A document, and the headers that let nothing else be loaded or run."""

    text: str
    headers: dict[str, str]


@cache
def explorer() -> Page:
    """The page to explore models with."""
    return _with_headers(shared.explorer((HERE / "explorer.js").read_text(), foot=FOOT))


@cache
def reference() -> Page:
    """The page of /openapi.json."""
    styles = (shared.HERE / "page.css", HERE / "reference.css")
    body, script = ((HERE / f"reference.{ending}").read_text() for ending in ("html", "js"))
    return _with_headers(shared.page(body, styles, script))


def _with_headers(page: shared.Page) -> Page:
    policy = (
        f"default-src 'none'; style-src {page.style_hash}; script-src {page.script_hash}; connect-src 'self';"
        " img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
    return Page(page.text, {"content-security-policy": policy, "cache-control": "no-cache"})
