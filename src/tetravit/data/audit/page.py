"""check.html: the findings of a data check on one page, with thumbnails of their first places."""

import base64
import html
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tetravit.data.decode import BadImage, decode
from tetravit.files import replace_file

if TYPE_CHECKING:
    from tetravit.data.audit.check import Audit

SIDE, SHOWN = 96, 12  # thumbnail side in pixels; thumbnails per finding
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}
h2{font-size:1.05rem;margin:2rem 0 .3rem}.error{color:#a11}.note{color:#555}
figure{display:inline-block;width:8.5rem;margin:.3rem;vertical-align:top;font-size:.72rem;overflow-wrap:anywhere}
img,.none{width:96px;height:96px;object-fit:contain;background:#eee;display:block}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}.error{color:#f88}.note{color:#aaa}}"""


def write_page(audit: "Audit", file: Path) -> None:
    """Write the page, self-contained."""
    counts = ", ".join(f"{count:,} in {part}" for part, count in audit.layout.counts.items()) or "none"
    parts = [
        f"<h1>{html.escape(audit.root)}</h1>",
        f"<p>Read as <b>{audit.layout.name}</b>; images: {counts}; classes: {len(audit.layout.class_names)};"
        f" files read: {audit.files:,}.</p>",
    ]
    if not audit.findings:
        parts.append("<p>Nothing was found.</p>")
    for finding in audit.findings:
        parts.append(f'<h2 class="{finding.level}">{finding.count:,} {html.escape(finding.title)}</h2>')
        for place, detail in finding.places[:SHOWN]:
            picture = _thumbnail(os.path.join(audit.root, place))
            shown = f'<img alt="" src="{picture}">' if picture else '<span class="none"></span>'
            text = html.escape(place) + (f"<br>{html.escape(detail)}" if detail else "")
            parts.append(f"<figure>{shown}<figcaption>{text}</figcaption></figure>")
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Check of {html.escape(os.path.basename(audit.root))}</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>"
    )
    replace_file(file, page.encode("utf-8", errors="replace"))


def _thumbnail(file: str) -> str | None:
    """A thumbnail of an image as a data URL; None: it cannot be read."""
    if not os.path.isfile(file):
        return None
    try:
        picture = Image.fromarray(decode(file).permute(1, 2, 0).numpy())
    except BadImage:
        return None
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
