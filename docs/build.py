"""Build the documentation site into build/site: `pip install '.[docs]' && python docs/build.py`.

Pages of docs/ and results/ are copied into build/docs. The reference is written from the code (docs/reference.py),
and the figures are drawn for light and dark pages (docs/figures.py). Then Zensical builds the site. Links of the
pages and of the built site are checked, and the site may load nothing from another host.
"""

import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import figures
import notebook
import reference

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
OTHERS = {
    "index.md": "README.md",
    "results.md": "results/README.md",
    "dino.md": "results/dino.md",
    "studies.md": "results/studies.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
MARKS = re.compile(r"^<!-- .*? -->\n", re.M)  # of tests and of docs/walk.py
FIGURE = re.compile(r"!\[([^\]]*)\]\(((?:\w+/)*figures/[\w-]+)\.svg\)")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def copy_pages() -> None:
    """The pages as they are in the repository, with links that fit the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file() and path.suffix in (".md", ".png", ".gif", ".svg", ".css"):
            target = PAGES / path.relative_to(ROOT / "docs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name, source in OTHERS.items():
        shutil.copyfile(ROOT / source, PAGES / name)
    (PAGES / "notebooks").mkdir()
    for path in sorted(notebook.FOLDER.glob("*.ipynb")):
        target = PAGES / "notebooks" / f"{path.stem}.md"
        target.write_text(notebook.page(path, target.parent), encoding="utf-8")
    for page in PAGES.rglob("*.md"):
        up = "../" * (len(page.relative_to(PAGES).parts) - 1)
        page.write_text(for_the_site(page.read_text(encoding="utf-8"), up), encoding="utf-8")
    for folder in PAGES.rglob("figures"):
        figures.draw(folder, dark=True)


def for_the_site(text: str, up: str = "") -> str:
    """A page of the repository as a page of the site; `up` leads to the first page."""
    text = re.sub(
        r"^<!-- options: (\w+) -->\n", lambda match: reference.layout_options(match[1]), text, flags=re.M
    )
    text = MARKS.sub("", text)
    text = FIGURE.sub(r"![\1](\2.svg#only-light)![\1](\2-dark.svg#only-dark)", text)
    for name, source in OTHERS.items():
        if source != "README.md":
            text = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}(#[\w-]+)?\)", rf"]({up}{name}\1)", text)
    text = text.replace("](README.md)", "](results.md)").replace("](docs/", "](").replace("](../docs/", "](")
    text = re.sub(r"\]\((?:\.\./)*(?:ARCHITECTURE|CONTRIBUTING)\.md\)", f"]({up}index.md)", text)
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./)*(?:NOTICE|LICENSE)\)", r"\1", text)
    text = text.replace("](notebooks)", "](notebooks/classify.md)")
    return re.sub(r"\]\((?:\.\./)*(dino|studies)\.md\)", rf"]({up}\1.md)", text)


def broken_links() -> list[str]:
    """Links of the pages that lead to no page or picture."""
    broken = []
    for page in sorted(PAGES.rglob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in LINK.findall(text):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(PAGES).as_posix()}: {target}")
    return broken


def faults(site: Path) -> list[str]:
    """What is wrong with the built site: links and anchors that lead nowhere, and what it loads from other hosts."""
    found = []
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    anchors = {path: {""} | set(re.findall(r'\bid="?([^"\s>]+)', text)) for path, text in texts.items()}
    for path, text in texts.items():
        if path.name == "404.html":
            continue
        name = path.relative_to(site.resolve()).as_posix()
        loaded = re.findall(r"<(?:script|img|iframe|source|video)\b[^>]*?\bsrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(
            r'<link\b[^>]*?rel="?(?:stylesheet|preconnect|icon|preload)"?[^>]*?href="?([^"\s>]+)', text
        )
        found += [f"{name} loads {address}" for address in loaded if re.match(r"(?:https?:)?//", address)]
        for address in [*re.findall(r'<a\b[^>]*?\bhref="?([^"\s>]+)', text), *loaded]:
            address = unescape(address)
            if re.match(r"(?:[a-z]+:|//)", address):
                continue
            place, _, anchor = address.partition("#")
            target = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: {address}")
            elif not anchor.startswith(("__", "only-")) and unquote(anchor) not in anchors.get(
                target, {unquote(anchor)}
            ):
                found.append(f"{name}: no such heading: {address}")
    return found


def main() -> int:
    copy_pages()
    folder = PAGES / "reference"
    folder.mkdir()
    for name, write in reference.PAGES.items():
        (folder / f"{name}.md").write_text(write(), encoding="utf-8")
    broken = broken_links()
    if not broken and "--pages" not in sys.argv:
        tool = shutil.which("zensical") or shutil.which("mkdocs")
        if tool is None:
            print("The site needs the extra: pip install '.[docs]'.", file=sys.stderr)
            return 2
        code = subprocess.run([tool, "build", "--clean"], cwd=ROOT, check=False).returncode
        if code:
            return code
        broken = faults(SITE)
    for line in broken:
        print(f"Broken link: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
