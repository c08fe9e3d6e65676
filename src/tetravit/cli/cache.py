"""`tetravit cache`: the programs that --optimize stores on this machine."""

import datetime
from typing import Annotated, Any

import typer

from tetravit.cli.base import Group, print_rows, print_table, say


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List the stored programs, most recently used first, with their sizes."""
    from tetravit.runtimes.parts import kept

    entries = kept.entries()
    rows = [_row(entry) for entry in entries]
    if as_json:
        print_rows(rows)
        return
    if rows:
        columns = ["model", "image", "runs with", "MB", "last used"]
        cells = ([*list(row.values())[:3], f"{row['bytes'] / 1e6:,.0f}", row["used"]] for row in rows)
        print_table(columns, cells, right=["MB"])
    size = sum(entry.size for entry in entries)
    programs = "1 program" if len(entries) == 1 else f"{len(entries)} programs"
    say(f"{programs}, {size / 1e6:,.0f} of at most {kept.limit() / 1e6:,.0f} MB, in {kept.folder()}.")


def clear() -> None:
    """Remove the stored programs; the next --optimize of a model builds them again."""
    from tetravit.runtimes.parts import kept

    count, size = kept.clear()
    say(f"Removed {'1 program' if count == 1 else f'{count} programs'}, {size / 1e6:,.0f} MB.")


def _row(entry: Any) -> dict[str, Any]:
    choices = entry.facts.get("choices")
    rows = choices.values() if isinstance(choices, dict) else ()
    backends = sorted({str(row.get("backend")) for row in rows if isinstance(row, dict)})
    return {
        "model": entry.facts.get("model") or "-",
        "image": entry.facts.get("image") or "-",
        "runs_with": ", ".join(backends) or "-",
        "bytes": entry.size,
        "used": datetime.datetime.fromtimestamp(entry.used).isoformat(" ", "seconds"),
        "key": entry.key,
    }


GROUPS = {"cache": Group("Programs of --optimize, kept on this machine.", {"list": list_, "clear": clear})}
