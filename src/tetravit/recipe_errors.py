"""Errors of a recipe: convert pydantic's errors into one line with the key, the allowed and the given value."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from tetravit.registry import SYNONYMS, suggestion

Keys = Sequence[tuple[str, Any]]  # dotted keys of a recipe with their types

TYPES = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "string_type": "str",
    "bool_type": "bool",
    "path_type": "str",
    "tuple_type": "list",
    "list_type": "list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def message(error: ValidationError, table: Mapping[str, Any], keys: Keys) -> str:
    """The first error, in one line; unknown keys take precedence over missing ones."""
    errors = error.errors(include_url=False)
    errors.sort(key=lambda e: e["type"] == "missing")
    first = errors[0]
    path = _path(first["loc"])
    together = [e for e in errors if _path(e["loc"]) == path]
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        return f"Unknown recipe key {path!r}.{_near_key(path, keys)}"
    if kind == "missing":
        if isinstance(value, list):
            return f"{_path(first['loc'][:-1])} has too few values; got {value!r}."
        return f"The recipe lacks {path}."
    if kind == "too_long":
        return f"{path} takes {first['ctx']['max_length']} values; got {len(_given(table, path))}."
    if kind == "value_error":
        return str(first["ctx"]["error"])
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"{path} is {words} {first['ctx'][key]:g}; got {value!r}."
    if kind == "finite_number":
        return f"{path} takes a finite number; got {value!r}."
    types = list(dict.fromkeys(TYPES[e["type"]] for e in together if e["type"] in TYPES))
    choices = [c for e in together if e["type"] == "literal_error" for c in _choices(path, keys)]
    if choices:
        takes = [*types, f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])]
        got = f"{value!r} ({_kind(value)})" if types else repr(value)
        return f"{path} takes {' or '.join(takes)}; got {got}."
    if types:
        return f"{path} takes {' or '.join(types)}; got {value!r} ({_kind(value)})."
    return f"{path}: {first['msg']}; got {value!r}."


def _path(loc: Sequence[int | str]) -> str:
    """The dotted path of an error, without pydantic's tags for members of a union."""
    parts = [str(part) for part in loc]
    marked = len(loc) > 2 and isinstance(loc[2], str) and loc[1] != "options"
    return ".".join(parts[:2] if marked else parts)


def _given(table: Mapping[str, Any], path: str) -> Any:
    value: Any = table
    for part in path.split("."):
        value = value[part]
    return value


def _near_key(path: str, keys: Keys) -> str:
    """A suggestion: the same key in another section, or the nearest key of this section."""
    known = list(dict.fromkeys(name for name, _ in keys))
    section, _, key = path.rpartition(".")
    if path in known:  # keys of task and evaluate depend on their name
        chosen = {"task": "task.name", "evaluate": "evaluate.protocol"}.get(section, section)
        return f" Another {chosen} takes it."
    elsewhere = [name for name in known if name.rpartition(".")[2] == key]
    meant = SYNONYMS.get(key.lower())
    if elsewhere or meant in known:
        return f" Did you mean {(meant if meant in known else elsewhere[0])!r}?"
    if section:
        return suggestion(path, [name for name in known if name.rpartition(".")[0] == section])
    return suggestion(path, dict.fromkeys(name.partition(".")[0] for name in known))


def _choices(path: str, keys: Keys) -> list[Any]:
    """The values of a Literal, also inside a union."""
    annotations = [annotation for name, annotation in keys if name == path]
    parts = [part for a in annotations for part in (a, *get_args(a)) if get_origin(part) is Literal]
    return list(dict.fromkeys(c for part in parts for c in get_args(part)))


def _kind(value: Any) -> str:
    return {"dict": "table"}.get(type(value).__name__, type(value).__name__)
