"""Recipe tables before validation: overrides, merging, and the length of the run.

An override of epochs or steps replaces the other one, and the warm-up is adapted.
"""

import json
import os
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

Table = dict[str, Any]
# Keys that name a file or a folder of this machine, or something published.
FILES = (
    ("model", "weights"),
    ("model", "backbone_weights"),
    ("task", "teacher"),
    ("task", "teacher_weights"),
)


def fitted_length(table: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Table, tuple[str, ...]]:
    """Adapt a recipe's table to a length in `changes`; returns it with a line per adapted value.

    Epochs replace steps and vice versa. A warm-up or cooldown not set in `changes` keeps its share of the run if it
    would no longer fit, or if its unit is not that of the run.
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
    explicit = changes.get("optim", {})
    explicit = explicit if isinstance(explicit, Mapping) else {}
    if not _counts(before) or any(key in explicit for key in ("warmup_epochs", "warmup_steps")):
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
    elif (switched and in_steps) or (not in_steps and warmup + cooldown >= new):
        fitted = min(new, warmup * new // before)
        optim.pop("warmup_steps", None)
        optim["warmup_epochs"] = fitted
        notes.append(f"warm-up of {fitted} epochs of {new}, in place of {old}")
        if fitted + cooldown > new and "cooldown_epochs" not in explicit:
            left = optim["cooldown_epochs"] = cooldown * new // before
            notes.append(f"cooldown of {left} epochs of {new}, in place of {cooldown} of {before}")
    return {**table, "optim": optim}, tuple(notes)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def as_overrides(table: Mapping[str, Any], above: str = "") -> list[str]:
    """A table of changes, nested or with dotted keys -> command-line overrides: section.key=value.

    Raises:
        ValueError: for a value that a recipe cannot hold.
    """
    changes: list[str] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            changes += as_overrides(value, f"{above}{key}.")
        elif value is None:
            raise ValueError(f"{above}{key}=None sets nothing; leave it out to keep the value of the recipe.")
        else:
            try:
                changes.append(f"{above}{key}={json.dumps(value, default=_plain)}")
            except TypeError:
                kind = type(value).__name__
                raise ValueError(
                    f"{above}{key} takes a text, a number, a list or a table; got {kind}."
                ) from None
    return changes


def _plain(value: Any) -> Any:
    """A path or a number of NumPy or PyTorch as plain data.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError


def split(override: str) -> tuple[list[str], Any]:
    """Parse `section.key=value` into keys and a TOML value, or else a bare string."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ValueError(f"An override reads section.key=value; got {override!r}.")
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return keys, text
    return keys, table["value"] if len(table) == 1 else text


def as_written(override: str, known: Iterable[tuple[str, Any]]) -> tuple[list[str], Any]:
    """`split`, but keys of type text get the text as written: 2024, 1e5 and true may be folder names.

    known: every key with its type.
    """
    keys, value = split(override)
    types = [annotation for key, annotation in known if key == ".".join(keys)]
    if types and not isinstance(value, str | list | dict) and all(map(_takes_text_alone, types)):
        return keys, override.partition("=")[2].strip()
    return keys, value


def _takes_text_alone(annotation: Any) -> bool:
    members = set(get_args(annotation)) - {type(None)} or {annotation}
    return str in members and members <= {str, tuple[str, ...], list[str]}


def put(table: Table, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = table[key] = {}
        table = inner
    table[keys[-1]] = value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Table:
    """Merge two tables; values of `above` take precedence, tables are merged recursively."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[key] = merged(under, value) if both else value  # type: ignore[arg-type]
    return result


def without_foreign_options(table: Table, changes: Table) -> Table:
    """The table without options of a task, a data set or a protocol that the changes replace by another."""
    old, new = _pair(table, changes, "data")
    if new.get("name", old.get("name")) != old.get("name"):
        table = {**table, "data": {key: value for key, value in old.items() if key != "options"}}
    old, new = _pair(table, changes, "task")
    if new.get("name", old.get("name")) != old.get("name"):
        table = {key: value for key, value in table.items() if key not in ("task", "evaluate")}
    old, new = _pair(table, changes, "evaluate")
    if new.get("protocol", old.get("protocol")) != old.get("protocol"):
        table = {key: value for key, value in table.items() if key != "evaluate"}
    return table


def without_head_options(
    table: Table, changes: Table, takes: Callable[[str], Collection[str] | None]
) -> tuple[Table, tuple[str, ...]]:
    """The table without head options unknown to the head in the changes, and a line about them.

    takes: options of the head; None: unknown head.
    """
    old, new = _pair(table, changes, "model")
    options, head = old.get("head_options"), new.get("head")
    known = takes(head) if isinstance(head, str) and head != old.get("head") else None
    foreign = (
        [key for key in options if key not in known]
        if known is not None and isinstance(options, Mapping)
        else []
    )
    if not foreign or not isinstance(options, Mapping):
        return table, ()
    kept = {key: value for key, value in options.items() if key not in foreign}
    line = f"model.head_options without {', '.join(foreign)}, which {head} does not have"
    return {**table, "model": {**old, "head_options": kept}}, (line,)


def with_channels(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table with data.channels set to model.options.in_chans, if that is given.

    Raises:
        ValueError: if both are given and differ.
    """
    model, data = table.get("model"), table.get("data")
    options = model.get("options") if isinstance(model, Mapping) else None
    if not isinstance(options, Mapping) or "in_chans" not in options or not isinstance(data, Mapping):
        return table
    wanted = options["in_chans"]
    if data.get("channels", wanted) != wanted:
        raise ValueError(
            f"model.options.in_chans and data.channels are one number; got {wanted} and {data['channels']}."
        )
    return {**table, "data": {**data, "channels": wanted}}


def with_whole_paths(table: Mapping[str, Any], options: Collection[str]) -> Mapping[str, Any]:
    """The table with the paths of files that are there made absolute: a run goes on from any folder.

    Those of data.root and of the parts are made absolute by `DataConfig`. Names of published weights stay.

    options: of the data set, that are paths.
    """
    for *sections, key in (*FILES, *(("data", "options", name) for name in options)):
        inner: Any = table
        for section in sections:
            inner = inner.get(section) if isinstance(inner, Mapping) else None
        value = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(value, str) and value and os.path.exists(os.path.expanduser(value)):
            whole: Table = {}
            put(whole, [*sections, key], os.path.abspath(os.path.expanduser(value)))
            table = merged(table, whole)
    return table


def _pair(table: Table, changes: Table, section: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A section of both tables; empty if it is missing."""
    old, new = table.get(section), changes.get(section)
    return (old if isinstance(old, Mapping) else {}), (new if isinstance(new, Mapping) else {})


def model_name(table: Mapping[str, Any]) -> str | None:
    section = table.get("model")
    name = section.get("name") if isinstance(section, Mapping) else None
    return name if isinstance(name, str) else None


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys with values in a table; an empty table counts as a value."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
