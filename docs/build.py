"""Build the documentation site into build/site: `pip install '.[docs]' && python docs/build.py`.

Pages of docs/ and results/ are copied into build/docs; the reference is written from the code: commands, keys of
recipes, models, the Python interface. Then Zensical builds the site, and every link of the pages is checked.
"""

import inspect
import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
MOVED = {"../results/README.md": "results.md", "../results/dino.md": "dino.md", "docs/": ""}


def copy_pages() -> None:
    """The pages as they are in the repository, with links that fit the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file() and path.suffix in (".md", ".png", ".gif", ".svg"):
            target = PAGES / path.relative_to(ROOT / "docs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name, source in {
        "index.md": "README.md",
        "results.md": "results/README.md",
        "dino.md": "results/dino.md",
    }.items():
        shutil.copyfile(ROOT / source, PAGES / name)
    for page in PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<!-- (?:run|data|setup|models|/models).*?-->\n", "", text)
        for before, after in {
            **MOVED,
            "results/README.md": "results.md",
            "results/dino.md": "dino.md",
        }.items():
            text = text.replace(f"]({before}", f"]({after}")
        text = re.sub(
            r"\]\((?:\.\./)*(ARCHITECTURE|CONTRIBUTING|CHANGELOG|SECURITY)\.md\)", "](index.md)", text
        )
        text = re.sub(r"\[([^\]]+)\]\((?:NOTICE|LICENSE)\)", r"\1", text)
        page.write_text(text, encoding="utf-8")


def commands() -> str:
    """Every verb with its help."""
    import typer

    from tetravit.cli.app import application

    lines = ["# Commands", "", "`tetravit --help` and `tetravit VERB --help` print the same.", ""]

    def add(command: object, name: str) -> None:
        subcommands = getattr(command, "commands", {})
        if subcommands and name != "tetravit":
            lines.extend([f"## {name}", "", getattr(command, "help", "") or "", ""])
        for word, sub in subcommands.items():
            add(sub, f"{name} {word}")
        if not subcommands:
            lines.extend(
                [
                    f"### {name}",
                    "",
                    (getattr(command, "help", "") or "").strip(),
                    "",
                    "| option | meaning |",
                    "|---|---|",
                ]
            )
            for option in command.params:  # type: ignore[attr-defined]
                names = ", ".join(
                    f"`{text}`"
                    for text in (
                        option.opts
                        if option.opts[0].startswith("-")
                        else [option.metavar or option.name.upper()]
                    )
                )
                meaning = (getattr(option, "help", "") or "").replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"| {names} | {meaning} |")
            lines.append("")

    add(typer.main.get_command(application()), "tetravit")
    return "\n".join(lines)


def keys() -> str:
    """Every key of a recipe with type, default and meaning."""
    table = json.loads((ROOT / "src/tetravit/recipes/keys.json").read_text(encoding="utf-8"))
    lines = [
        "# Keys of recipes",
        "",
        "`tetravit show KEY` explains one; `tetravit show RECIPE` prints all with their values.",
        "",
    ]
    for section, rows in table["sections"].items():
        lines += [
            f"## {section}" if section else "## A recipe",
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for row in rows.values():
            cells = (
                str(row[name]).replace("|", "\\|").replace("<", "&lt;")
                for name in ("type", "default", "about")
            )
            lines.append(f"| `{row['key']}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def models() -> str:
    """Every model with its figures, and every set of published weights with its licence."""
    from tetravit.weights import CHECKPOINTS

    counts = json.loads((ROOT / "src/tetravit/benchmark/counts.json").read_text(encoding="utf-8"))
    lines = [
        "# Models",
        "",
        "Multiply-adds at the paper's image size.",
        "",
        "| model | image side | parameters M | multiply-adds G |",
        "|---|--:|--:|--:|",
    ]
    for name, row in counts.items():
        lines.append(
            f"| {name} | {row['image_size']} | {row['params'] / 1e6:.1f} | {row['macs'] / 1e9:.1f} |"
        )
    lines += [
        "",
        "## Published weights",
        "",
        "Figures as their authors report them; `tetravit show NAME` has those measured by others.",
        "",
        "| weights | task | data | published | licence |",
        "|---|---|---|---|---|",
    ]
    for name, checkpoint in CHECKPOINTS.items():
        figures = ", ".join(f"{key} {value:g}" for key, value in checkpoint.published.items())
        lines.append(f"| {name} | {checkpoint.task} | {checkpoint.data} | {figures} | {checkpoint.licence} |")
    return "\n".join([*lines, ""])


def python() -> str:
    """The public names with their signatures and docstrings."""
    import tetravit

    lines = ["# Python", ""]
    for name in tetravit.__all__:
        value = getattr(tetravit, name)
        if name.startswith("__"):
            continue
        lines += [f"## tetravit.{name}", ""]
        if callable(value):
            with suppress(ValueError):
                lines += ["```python", f"{name}{inspect.signature(value)}", "```", ""]
        lines += ["```text", inspect.getdoc(value) or "", "```", ""]
        if inspect.isclass(value):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                if not method.startswith("_") and method in vars(value) and function.__doc__:
                    lines += [
                        f"### {name}.{method}",
                        "",
                        "```python",
                        f"{method}{inspect.signature(function)}",
                        "```",
                        "",
                        "```text",
                        inspect.getdoc(function) or "",
                        "```",
                        "",
                    ]
    return "\n".join(lines)


def broken_links() -> list[str]:
    """Links of the pages that lead to no page or picture of the site."""
    broken = []
    for page in PAGES.rglob("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if (
                "://" not in target
                and not target.startswith("mailto:")
                and not (page.parent / target).exists()
            ):
                broken.append(f"{page.relative_to(PAGES)}: {target}")
    return broken


def main() -> int:
    copy_pages()
    reference = PAGES / "reference"
    reference.mkdir()
    for name, write in {"commands": commands, "keys": keys, "models": models, "python": python}.items():
        (reference / f"{name}.md").write_text(write(), encoding="utf-8")
    for line in (broken := broken_links()):
        print(f"Broken link: {line}", file=sys.stderr)
    if broken:
        return 1
    if "--pages" in sys.argv:
        return 0
    tool = shutil.which("zensical") or shutil.which("mkdocs")
    if tool is None:
        print("The site needs the extra: pip install '.[docs]'.", file=sys.stderr)
        return 2
    return subprocess.run([tool, "build", "--clean"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
