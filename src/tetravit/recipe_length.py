"""The length of a run: epochs or steps, and what is fitted to it when an override changes it."""

from collections.abc import Mapping
from typing import Any

Table = dict[str, Any]


def fitted_length(table: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Table, tuple[str, ...]]:
    """A recipe's table fitted to a length in `changes`, and a line about each value that is fitted.

    Epochs replace steps and the reverse. A warm-up or cooldown that is not in `changes` itself keeps its share of
    the run where it would no longer fit, or where its unit is no longer that of the run.
    """
    table, notes = dict(table), []
    given = [key for key in ("epochs", "steps") if key in changes]
    if len(given) != 1 or not _counts(changes[given[0]]):
        return table, ()
    unit, new = given[0], changes[given[0]]
    other = "steps" if unit == "epochs" else "epochs"
    before = table.get(unit) or table.get(other)
    switched = unit not in table
    table.pop(other, None)
    optim = dict(table.get("optim") or {}) if isinstance(table.get("optim", {}), Mapping) else {}
    asked = changes.get("optim", {})
    asked = asked if isinstance(asked, Mapping) else {}
    if not _counts(before) or any(key in asked for key in ("warmup_epochs", "warmup_steps")):
        return table, ()
    warmup = optim.get("warmup_steps" if optim.get("warmup_steps") is not None else "warmup_epochs", 5)
    cooldown = optim.get("cooldown_epochs", 0)
    if not isinstance(warmup, int) or not isinstance(cooldown, int):
        return table, ()
    in_steps = optim.get("warmup_steps") is not None
    old = f"{warmup} {'steps' if in_steps else 'epochs'} of {before}"
    if unit == "steps":
        if (switched and not in_steps) or (in_steps and warmup > new):
            share = warmup * new // before if switched != in_steps else new // 10
            optim["warmup_steps"] = min(new, share)
            notes.append(f"warm-up of {optim['warmup_steps']} steps of {new}, in place of {old}")
    elif (switched and in_steps) or (not in_steps and warmup + cooldown > new):
        fitted = min(new, warmup * new // before)
        optim.pop("warmup_steps", None)
        optim["warmup_epochs"] = fitted
        notes.append(f"warm-up of {fitted} epochs of {new}, in place of {old}")
        if fitted + cooldown > new and "cooldown_epochs" not in asked:
            left = optim["cooldown_epochs"] = cooldown * new // before
            notes.append(f"cooldown of {left} epochs of {new}, in place of {cooldown} of {before}")
    return {**table, "optim": optim}, tuple(notes)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
