"""A run as typed data: read a TOML recipe, apply overrides, check every name and type, write it back."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tetravit.data.augment import parse
from tetravit.data.calls import parse_calls
from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS, kind_of
from tetravit.data.options import Options
from tetravit.engine.loop import RunConfig
from tetravit.engine.optim import OptimConfig
from tetravit.models import resolve
from tetravit.protocols import PROTOCOLS, ProtocolConfig
from tetravit.registry import pick, suggestion
from tetravit.tasks import TASKS, TaskConfig

Table = dict[str, Any]


class ModelConfig(BaseModel):
    """The `[model]` section: a row of the menu, and what is changed about it.

    head: of a dense task (`tetravit list heads`); None: its usual one. head_options: other arguments of the head's
    constructor.
    weights: a file, or the tag of published weights, to start from; None: from scratch. A head for another
    number of classes begins afresh; positions and windows are fitted to data.image_size. backbone_weights: the same
    of a classifier, for the backbone of a dense task alone. image_size: what a dense model's positions and windows
    are set up for; None: as its authors have it.
    freeze: how many groups of the backbone's `stages()`, stem first, do not train; `backbone`: all of it, so that
    only the head learns (a linear probe). options: other arguments of the backbone's constructor ("depth", ...).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    head: str | None = None
    head_options: Options = Field(default_factory=dict)
    weights: str | None = None
    backbone_weights: str | None = None
    image_size: int | None = Field(default=None, ge=32)
    freeze: Annotated[int, Field(ge=0)] | Literal["backbone"] = 0
    options: Options = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return resolve(name)


class Recipe(BaseModel):
    """Everything that decides a run.

    epochs, steps: how long it is; one of them. stretch: divide epochs by data.options.fraction, so that a run on a
    part of the images sees as many as a run on all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    stretch: bool = False
    task: SerializeAsAny[TaskConfig]
    evaluate: SerializeAsAny[ProtocolConfig] = Field(default_factory=ProtocolConfig, validate_default=True)
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = Field(default_factory=OptimConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    def total_epochs(self, steps_per_epoch: int) -> int:
        """How many epochs the run takes; the last one may end early."""
        if self.steps is not None:
            return -(-self.steps // steps_per_epoch)
        fraction = self.data.options.get("fraction", 1.0) if self.stretch else 1.0
        return max(1, round((self.epochs or 0) / fraction))

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many optimisation steps the run takes."""
        return self.steps or self.total_epochs(steps_per_epoch) * steps_per_epoch

    @field_validator("task", mode="before")
    @classmethod
    def _task(cls, section: Any) -> Any:
        """The section is read by the task that it names."""
        if isinstance(section, TaskConfig) or not isinstance(section, Mapping) or "name" not in section:
            return section
        name = section["name"]
        if not isinstance(name, str) or name not in TASKS:
            raise ValueError(f"task.name takes one of {', '.join(sorted(TASKS))}; got {name!r}.")
        return TASKS[name].Config.model_validate_json(json.dumps(section), strict=True)

    @field_validator("evaluate", mode="before")
    @classmethod
    def _evaluate(cls, section: Any, info: ValidationInfo) -> Any:
        """The section is read by the protocol that it names, or by the usual one of the task."""
        task = info.data.get("task")
        if task is None:  # the task is wrong, and that error is reported
            return ProtocolConfig()
        if isinstance(section, ProtocolConfig):
            section = section.model_dump(mode="json")
        if not isinstance(section, Mapping):
            return section
        name = section.get("protocol") or TASKS[task.name].protocol
        config = pick(PROTOCOLS, name, "protocol").Config if isinstance(name, str) else ProtocolConfig
        return config.model_validate_json(json.dumps({**section, "protocol": name}), strict=True)

    @model_validator(mode="after")
    def _names(self) -> Self:
        pick(DATASETS, self.data.name, "data set")
        parse(self.data.augment, size=self.data.image_size)
        if self.data.mix:
            parse_calls(self.data.mix, "A mix")
        _check_length(self)
        row = TASKS[self.task.name]
        if kind_of(DATASETS[self.data.name]) not in row.data_kinds:
            known = [name for name, data in DATASETS.items() if kind_of(data) in row.data_kinds]
            raise ValueError(
                f"The task {self.task.name!r} cannot train on the data set {self.data.name!r};"
                f" sets it trains on: {', '.join(sorted(known))}."
            )
        return self


def _check_length(recipe: "Recipe") -> None:
    optim, epochs = recipe.optim, recipe.epochs
    if (epochs is None) == (recipe.steps is None):
        raise ValueError(
            "The recipe lacks epochs."
            if epochs is None
            else "A recipe is so many epochs or steps long; got both."
        )
    if optim.warmup_steps is not None:
        if recipe.steps is not None and optim.warmup_steps > recipe.steps:
            raise ValueError(
                f"optim.warmup_steps is at most steps; got {optim.warmup_steps} of {recipe.steps}."
            )
    elif (
        epochs is not None and optim.cooldown_epochs and optim.warmup_epochs + optim.cooldown_epochs > epochs
    ):
        raise ValueError(
            "optim.warmup_epochs and optim.cooldown_epochs are together at most epochs; got"
            f" {optim.warmup_epochs} and {optim.cooldown_epochs} of {epochs}."
        )
    elif epochs is not None and optim.warmup_epochs > epochs:
        raise ValueError(f"optim.warmup_epochs is at most epochs; got {optim.warmup_epochs} of {epochs}.")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `section.key=value` overrides, check every name and type.

    A `[variants.NAME]` table in the file holds what the source changes for that model only. It counts more
    than the rest of the file and less than an override.

    Raises:
        ValueError: in one line, for a file that does not read, or anything in it that is not known.
        OSError: if there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    return loads(text, overrides, name=str(path))


def loads(text: str, overrides: Sequence[str] = (), *, name: str = "The recipe") -> Recipe:
    """`load` for a text that is already read; `name` is what to call it in a message.

    Raises:
        ValueError: as `load`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}.") from None
    changes: Table = {}
    for override in overrides:
        _set(changes, *_split(override))
    variants = table.pop("variants", {})
    model = _model_name(_merged(table, changes))
    if isinstance(variants, Mapping):
        own: Table = next((v for k, v in variants.items() if model is not None and _same_model(k, model)), {})
        table = _merged(table, own)
    return validated(_merged(_without_strange_options(table, changes), changes))


def _without_strange_options(table: Table, changes: Table) -> Table:
    """A table as read, less the options of a data set that the changes put another one in the place of."""
    old, new = table.get("data"), changes.get("data")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return table
    if new.get("name", old.get("name")) == old.get("name"):
        return table
    return {**table, "data": {key: value for key, value in old.items() if key != "options"}}


def validated(table: Mapping[str, Any]) -> Recipe:
    """A table as read from TOML -> a recipe.

    Raises:
        ValueError: in one line, with the dotted path of the first thing that is wrong.
    """
    try:
        return Recipe.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise ValueError(_message(error, table)) from None


def dump(recipe: Recipe) -> str:
    """Write the recipe with every default filled in; `load` reads it back to an equal one."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name ("xcit/imagenet")."""
    root = Path(str(files("tetravit") / "recipes"))
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.toml"))}


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe: one of `list_recipes()`, or a path.

    Raises:
        ValueError: if there is neither.
    """
    path, known = Path(name_or_path), list_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"There is no recipe file {str(path)!r}.")
        return path
    return pick(known, str(name_or_path), "recipe")


def _split(override: str) -> tuple[list[str], Any]:
    """`section.key=value` -> keys and the value as TOML reads it, or else as a bare string."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ValueError(f"An override reads section.key=value; got {override!r}.")
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return keys, text
    return keys, table["value"] if len(table) == 1 else text


def _set(table: Table, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = table[key] = {}
        table = inner
    table[keys[-1]] = value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Table:
    """Both tables in one; where both have a value, `above` counts. Its other tables are joined."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(under, value) if both else value  # type: ignore[arg-type]
    return result


def _model_name(table: Mapping[str, Any]) -> str | None:
    section = table.get("model")
    name = section.get("name") if isinstance(section, Mapping) else None
    return name if isinstance(name, str) else None


def _same_model(a: str, b: str) -> bool:
    return a == b or resolve(a) == resolve(b)


# From pydantic's words to the house's

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


def _message(error: ValidationError, table: Mapping[str, Any]) -> str:
    """The first error, in one line; what is not known counts before what is missing."""
    found = error.errors(include_url=False)
    found.sort(key=lambda e: e["type"] == "missing")
    first = found[0]
    path = _path(first["loc"])
    together = [e for e in found if _path(e["loc"]) == path]
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        return f"Unknown recipe key {path!r}.{_near_key(path)}"
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
    choices = [c for e in together if e["type"] == "literal_error" for c in _choices(path)]
    if choices:
        takes = [*types, f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])]
        got = f"{value!r} ({_kind(value)})" if types else repr(value)
        return f"{path} takes {' or '.join(takes)}; got {got}."
    if types:
        return f"{path} takes {' or '.join(types)}; got {value!r} ({_kind(value)})."
    return f"{path}: {first['msg']}; got {value!r}."


def _path(loc: Sequence[int | str]) -> str:
    """The dotted path of an error without pydantic's marks for the members of a union."""
    parts = [str(part) for part in loc]
    marked = len(loc) > 2 and isinstance(loc[2], str) and loc[1] != "options"
    return ".".join(parts[:2] if marked else parts)


def _given(table: Mapping[str, Any], path: str) -> Any:
    value: Any = table
    for part in path.split("."):
        value = value[part]
    return value


def _sections() -> dict[str, type[BaseModel]]:
    sections = {n: f.annotation for n, f in Recipe.model_fields.items()}
    return {n: a for n, a in sections.items() if isinstance(a, type) and issubclass(a, BaseModel)}


def _known() -> Iterator[tuple[str, Any]]:
    """Every key of a recipe with its type."""
    for name, info in Recipe.model_fields.items():
        if name == "task":
            classes: list[type[BaseModel]] = [TaskConfig, *(task.Config for task in TASKS.values())]
        elif name == "evaluate":
            classes = [ProtocolConfig, *(row.Config for row in PROTOCOLS.values())]
        elif name in _sections():
            classes = [_sections()[name]]
        else:
            yield name, info.annotation
            continue
        for model in classes:
            yield from ((f"{name}.{key}", inner.annotation) for key, inner in model.model_fields.items())


def _near_key(path: str) -> str:
    """The same key of another section, or the nearest of this one."""
    known = list(dict.fromkeys(name for name, _ in _known()))
    section, _, key = path.rpartition(".")
    elsewhere = [name for name in known if name.rpartition(".")[2] == key]
    if elsewhere:
        return f" Did you mean {elsewhere[0]!r}?"
    if section:
        return suggestion(path, [name for name in known if name.rpartition(".")[0] == section])
    return suggestion(path, Recipe.model_fields)


def _choices(path: str) -> list[Any]:
    """The values of a closed choice, also inside a union."""
    annotations = [annotation for name, annotation in _known() if name == path]
    parts = [part for a in annotations for part in (a, *get_args(a)) if get_origin(part) is Literal]
    return list(dict.fromkeys(c for part in parts for c in get_args(part)))


def _kind(value: Any) -> str:
    return {"dict": "table"}.get(type(value).__name__, type(value).__name__)
