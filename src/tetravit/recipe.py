"""Recipes as typed data: parse TOML, apply overrides, check every name and type, write TOML."""

import inspect
import json
import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
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
from tetravit.engine.config import RunConfig
from tetravit.engine.optim import OptimConfig
from tetravit.heads import HEADS
from tetravit.models import resolve
from tetravit.models.create import FIXED
from tetravit.protocols import PROTOCOLS, ProtocolConfig
from tetravit.recipe_errors import message
from tetravit.recipe_tables import (
    as_written,
    fitted_length,
    leaves,
    merged,
    model_name,
    put,
    with_channels,
    with_whole_paths,
    without_foreign_options,
    without_head_options,
)
from tetravit.registry import pick
from tetravit.tasks import TASKS, TaskConfig

Table = dict[str, Any]
Side = Annotated[int, Field(ge=32)]


class ModelConfig(BaseModel):
    """The `[model]` section: a model by name, and its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(description="`tetravit list models`.")
    drop_path: float | None = Field(
        default=None, ge=0, lt=1, description="Stochastic depth of the last block; unset: as in the paper."
    )
    head: str | None = Field(
        default=None,
        description="Head of a detector or segmenter; `tetravit list heads`; unset: the default.",
    )
    head_options: Options = Field(
        default_factory=dict, description="Other arguments of the head's constructor."
    )
    weights: str | None = Field(
        default=None,
        description="A file, a run folder, or the tag of published weights (in1k) to start from; unset: random"
        " weights. The head is initialised anew for another number of classes; positions and windows are resized to"
        " data.image_size.",
    )
    backbone_weights: str | None = Field(
        default=None,
        description="Weights of a classifier or a self-supervised run, for the backbone of a detector or segmenter.",
    )
    image_size: Side | tuple[Side, Side] | None = Field(
        default=None,
        description="Image size, in pixels or [height, width], for positions and windows of a detector or segmenter;"
        " unset: that of the model.",
    )
    freeze: Annotated[int, Field(ge=0)] | Literal["backbone"] = Field(
        default=0,
        description="Number of frozen groups of the backbone's stages(), stem first; backbone: all of them, so that"
        " only the head trains (a linear probe).",
    )
    options: Options = Field(
        default_factory=dict, description="Other arguments of the backbone's constructor (depth, ...)."
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return resolve(name)


class Recipe(BaseModel):
    """A whole recipe: every setting of a run.

    notes: adaptations of other values to overrides, one line each. origins: where a key was set, by its dotted name;
    missing keys have their default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int | None = Field(default=None, ge=1, description="Length of the run in epochs; or steps.")
    steps: int | None = Field(default=None, ge=1, description="Length of the run in steps; or epochs.")
    scale_epochs: bool = Field(
        default=False,
        description="Divide epochs by data.options.fraction: a run on a subset has as many steps as one on all"
        " images.",
    )
    task: SerializeAsAny[TaskConfig]
    evaluate: SerializeAsAny[ProtocolConfig] = Field(default_factory=ProtocolConfig, validate_default=True)
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = Field(default_factory=OptimConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    _notes: tuple[str, ...] = PrivateAttr(default=())
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether two recipes have equal settings, whatever their origins."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    @property
    def origins(self) -> dict[str, str]:
        return self._origins

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Number of epochs of the run; the last one may end early."""
        if self.steps is not None:
            return -(-self.steps // steps_per_epoch)
        fraction = self.data.options.get("fraction", 1.0) if self.scale_epochs else 1.0
        return max(1, round((self.epochs or 0) / fraction))

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps of the run."""
        return self.steps or self.total_epochs(steps_per_epoch) * steps_per_epoch

    @field_validator("task", mode="before")
    @classmethod
    def _task(cls, section: Any) -> Any:
        """Parse the section by the task it names."""
        if isinstance(section, TaskConfig) or not isinstance(section, Mapping) or "name" not in section:
            return section
        name = section["name"]
        if not isinstance(name, str) or name not in TASKS:
            raise ValueError(f"task.name takes one of {', '.join(sorted(TASKS))}; got {name!r}.")
        return TASKS[name].Config.model_validate_json(json.dumps(section), strict=True)

    @field_validator("evaluate", mode="before")
    @classmethod
    def _evaluate(cls, section: Any, info: ValidationInfo) -> Any:
        """Parse the section by the protocol it names, or by the default protocol of the task."""
        task = info.data.get("task")
        if task is None:  # an error of the task section is reported instead
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
            "The recipe lacks epochs." if epochs is None else "A recipe has epochs or steps; got both."
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
    """Load a recipe file, apply `section.key=value` overrides, check every name and type.

    A `[variants.NAME]` table in the file contains the changes for one model. It takes precedence over the rest of the
    file, but not over overrides.

    Raises:
        ValueError: in one line, for invalid TOML, or an unknown key or name.
        OSError: if the file does not exist.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    return loads(text, overrides, name=str(path))


def loads(text: str, overrides: Sequence[str] = (), *, name: str = "The recipe") -> Recipe:
    """`load` from a text; `name`: for messages.

    Raises:
        ValueError: as `load`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}.") from None
    changes: Table = {}
    for override in overrides:
        put(changes, *as_written(override, known_keys()))
    variants = table.pop("variants", {})
    origins = dict.fromkeys(leaves(table), "recipe")
    model = model_name(merged(table, changes))
    if isinstance(variants, Mapping):
        own: Table = next((v for k, v in variants.items() if model is not None and _same_model(k, model)), {})
        table = merged(table, own)
        origins |= dict.fromkeys(leaves(own), "variant")
    table, left = without_head_options(without_foreign_options(table, changes), changes, _head_options)
    fitted, notes = fitted_length(table, changes)
    recipe = validated(merged(fitted, changes))
    origins |= dict.fromkeys(leaves(changes), "command line")
    recipe._notes, recipe._origins = (*notes, *left), origins
    return recipe


def validated(table: Mapping[str, Any]) -> Recipe:
    """A parsed TOML table -> a recipe.

    Raises:
        ValueError: in one line, with the dotted path of the first error.
    """
    try:
        return Recipe.model_validate_json(
            json.dumps(with_whole_paths(with_channels(table), _path_options(table)), default=str), strict=True
        )
    except ValidationError as error:
        raise ValueError(message(error, table, known_keys())) from None


def _path_options(table: Mapping[str, Any]) -> list[str]:
    """The options of the data set that name files."""
    section = table.get("data")
    name = section.get("name") if isinstance(section, Mapping) else None
    row = DATASETS.get(name) if isinstance(name, str) else None
    parameters = inspect.signature(row).parameters.values() if row is not None else ()
    return [p.name for p in parameters if Path in get_args(p.annotation) and p.name != "root"]


def dump(recipe: Recipe) -> str:
    """The recipe as TOML with every default written out; `load` reads it back to an equal one."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def list_recipes() -> dict[str, Path]:
    """The recipes of the package, by name ("xcit/imagenet")."""
    root = Path(str(files("tetravit") / "recipes"))
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.toml"))}


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe: one of `list_recipes()`, or a path.

    Raises:
        ValueError: if neither exists.
    """
    path, known = Path(os.path.expanduser(name_or_path)), list_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"There is no recipe file {str(path)!r}.")
        return path
    return pick(known, str(name_or_path), "recipe")


def _head_options(name: str) -> Collection[str] | None:
    """Constructor options of a head besides its fixed arguments; None: unknown head."""
    row = HEADS.get(name)
    return None if row is None else [p for p in inspect.signature(row).parameters if p not in FIXED]


def _same_model(a: str, b: str) -> bool:
    return a == b or resolve(a) == resolve(b)


def sections() -> dict[str, list[type[BaseModel]]]:
    """The sections of a recipe, each with its possible classes."""
    sets: dict[str, list[type[BaseModel]]] = {}
    for name, info in Recipe.model_fields.items():
        if name == "task":
            sets[name] = [TaskConfig, *(task.Config for task in TASKS.values())]
        elif name == "evaluate":
            sets[name] = [ProtocolConfig, *(row.Config for row in PROTOCOLS.values())]
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            sets[name] = [info.annotation]
    return sets


def known_keys() -> list[tuple[str, Any]]:
    """Every dotted key of a recipe with its type."""
    inside = sections()
    keys: list[tuple[str, Any]] = []
    for name, info in Recipe.model_fields.items():
        if name not in inside:
            keys.append((name, info.annotation))
        for model in inside.get(name, ()):
            keys += [(f"{name}.{key}", field.annotation) for key, field in model.model_fields.items()]
    return keys


@dataclass(frozen=True)
class Entry:
    """One key of a recipe. origin: recipe, variant, command line or default. description: of the key."""

    key: str
    value: Any
    origin: str
    description: str


def entries(recipe: Recipe) -> list[Entry]:
    """Every key of a recipe, with value, origin and description; sections in order."""
    rows: list[Entry] = []
    for name, info in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if not isinstance(value, BaseModel):
            rows.append(Entry(name, value, _origin(recipe, name), info.description or ""))
            continue
        plain = value.model_dump(mode="json")
        for key, field in type(value).model_fields.items():
            path = f"{name}.{key}"
            rows.append(Entry(path, plain[key], _origin(recipe, path), field.description or ""))
    return rows


def describe(key: str) -> list[tuple[str, str]]:
    """Descriptions of a dotted key, or of every key of a section; several if tasks or protocols differ.

    Returns:
        Pairs of key and description; none for an unknown key.
    """
    rows = {
        name: info.description or "" for name, info in Recipe.model_fields.items() if name not in sections()
    }
    pairs = list(rows.items())
    for name, models in sections().items():
        for model in models:
            pairs += [(f"{name}.{k}", field.description or "") for k, field in model.model_fields.items()]
    return list(dict.fromkeys(p for p in pairs if p[0] == key or p[0].startswith(f"{key}.")))


def _origin(recipe: Recipe, path: str) -> str:
    """Origin of a key, or of the keys of a table below it: the last one that set a value."""
    order = ("default", "recipe", "variant", "command line")
    given = [o for key, o in recipe.origins.items() if key == path or key.startswith(f"{path}.")]
    return max(given, key=order.index, default="default")
