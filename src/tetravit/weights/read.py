"""Load weights of any origin into a model: read, unwrap, detect the layout, rename, adapt, report.

One file: each step of reading, from a state dict to the report, is one function, in the order in which they run.

No tensor is dropped silently. Changes that follow from another model configuration (number of classes, input
channels, image size) are made and reported; any other difference is an error unless a pattern allows it.
"""

import fnmatch
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from tetravit import weights
from tetravit.backbones.base import Backbone
from tetravit.layers.relative_bias import RelativeBias, resize_table
from tetravit.layers.vit import LearnedPosition, PatchEmbed
from tetravit.registry import suggestion
from tetravit.weights import fileformat, torchfile
from tetravit.weights.fileformat import BadFile, Header
from tetravit.weights.selfsup import from_vissl, without_projection

# Keys under which training programs store weights, in search order. Averages come last: of the published trainers one
# (timm) evaluates them and one (DeiT) only saves them, so they are used only on request. A DINO run's published
# features are the teacher's.
ENTRIES = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "teacher",
    "student",
    "state_dict_ema",
    "model_ema",
)
HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
COUNTERS = "*.num_batches_tracked"  # update count of a BatchNorm; not a weight
# Prefixes that training programs add to every name, and counters stored in averaged models.
WRAPPERS = (
    *("_orig_mod.", "module.", "model.", "net.", "network.", "encoder.", "teacher.", "student."),
    *("ema_model.", "online_model."),
)
OWN = (
    "backbone.",
    "pyramid.",
    "neck.",
    "head_dist.",
)  # parts of a model, and all that end in "head.": no prefixes
AVERAGE_COUNTERS = ("n_averaged", "num_updates")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


class Names(Protocol):
    """A conversion from the state dict of one layout to ours: a `KeyMap`, or several joined."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class State:
    """A state dict as stored in a file. entry: its key in the file; None: the file is the dict itself. others:
    further entries with weights. inert: classes in the file whose objects were not rebuilt. header: our header, if
    the file has one. projection: tensors of a projection head, which models do not have.
    """

    source: str
    tensors: dict[str, Tensor]
    entry: str | None = None
    others: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    header: Header | None = None
    projection: tuple[str, ...] = ()


@dataclass
class Report:
    """The report on every tensor. Printed as five lines, plus one for the classes if class indices have a meaning.

    prefix: removed from every name. classes: meaning of the class indices.
    """

    source: str
    layout: str
    entry: str | None
    matched: int
    total: int
    renamed: int
    fingerprint: str | None = None
    others: tuple[str, ...] = ()
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    prefix: str = ""
    classes: str = ""

    def __str__(self) -> str:
        entry = f", entry {self.entry!r}" if self.entry else ""
        prefix = f", prefix {self.prefix!r} removed" if self.prefix else ""
        beside = f" ({', '.join(self.others)} beside it)" if self.others else ""
        lines = {
            "matched": f"{self.matched} of {self.total} tensors, {self.renamed} renamed; "
            f"layout {self.layout}{entry}{beside}{prefix}",
            "resized": _some(self.resized),
            "dropped": _some(self.dropped),
            "missing": _some(self.missing),
            "hash": f"sha256 {self.fingerprint}" if self.fingerprint else "not verified",
            **({"classes": self.classes} if self.classes else {}),
        }
        return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def read_state(
    source: str | Path | Mapping[str, Any], *, entry: str | None = None, verify: bool = True
) -> State:
    """The state dict of a file, with the names of the file. No code in the file is executed.

    Args:
        source: a file from `torch.save` of any version, a safetensors file, a folder from `save_pretrained` of timm
            or the Hugging Face hub, or a state dict.
        entry: the key of the weights in the file ("state_dict_ema", ...); None: the first of `ENTRIES`.
        verify: compare the checksums in the file, if any.

    Raises:
        BadFile: if the file is damaged, requires running code, or has no weights.
        OSError: if it cannot be opened.
    """
    if isinstance(source, Mapping):
        return _unwrap(source, "the state dict", entry)
    path = Path(source)
    if path.is_dir():
        path = _file_of(path)
    with path.open("rb") as file:
        start = file.read(10)
    if start[8:] != b'{"':
        contents = torchfile.load(path, verify)
        return _unwrap(contents.value, str(path), entry, contents.inert)
    if fileformat.is_ours(path):
        tensors, header = fileformat.read(path, verify)
        return State(str(path), tensors, header=header)
    return State(str(path), fileformat.map_tensors(path, fileformat.read_index(path)))


def load_into(
    model: nn.Module,
    source: str | Path | Mapping[str, Any] | State,
    *,
    layout: str | None = None,
    entry: str | None = None,
    allow: Sequence[str] = (),
    layouts: Mapping[str, Names] | None = None,
    verify: bool = True,
) -> Report:
    """Load weights of any known layout into a model. The model changes only if everything fits.

    Args:
        model: a backbone of this package, or a module that contains one.
        source: a source for `read_state`, or its result.
        layout: "ours", "official", "timm", ...; None: the layout whose names fit the model best.
        entry: as in `read_state`.
        allow: shell patterns of names, in either layout, that may be missing or unexpected ("head.*").
        layouts: more layouts to try, by name (those of dense heads).
        verify: compare the checksums of the file, and compute the fingerprint of the weights.

    Returns:
        A report: matched, renamed, resized, dropped and missing tensors.

    Raises:
        BadFile: if the file is damaged, or does not fit the model; the tensors are named.
        ValueError: for an unknown layout.
    """
    state = source if isinstance(source, State) else read_state(source, entry=entry, verify=verify)
    target = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    layout, named, renamed, prefix, beside = _recognise(state, target, _layouts(model, layouts or {}), layout)
    report = Report(
        source=state.source,
        layout=layout,
        entry=state.entry,
        matched=0,
        total=len(target),
        renamed=renamed,
        fingerprint=fileformat.fingerprint(fileformat.digests(named)) if verify else None,
        others=state.others,
        dropped=[f"{name} (projection head)" for name in state.projection],
    )
    report.prefix, counters = prefix, stripped(state.tensors)[2]
    report.dropped += [f"{key} (a counter)" for key in counters]
    _fit_head(named, target, report)
    _fit_stem(named, target, model, report)
    _fit_tables(named, target, model, _image_size(state), report)
    left = [key for key in beside if key in named and key not in target]
    report.dropped += [f"{key} (beside {prefix!r})" for key in left]
    for key in left:
        del named[key]
    try:
        _check(named, target, report, allow)
    except BadFile as error:
        if state.header is None:
            raise
        raise BadFile(f"{error} The file holds {_named_model(state.header)}.") from None
    report.matched = len(named)
    on_meta = any(t.is_meta for t in target.values())
    model.load_state_dict(named, strict=False, assign=on_meta)
    return report


def rename(
    tensors: Mapping[str, Tensor], family: str, layout: str, layouts: Mapping[str, Names] | None = None
) -> dict[str, Tensor]:
    """Rename weights from our names to those of `layout`.

    Raises:
        ValueError: if the family does not have that layout.
    """
    known = {**weights.LAYOUTS.get(family, {}), **(layouts or {})}
    if layout not in known:
        raise ValueError(f"Unknown layout {layout!r} of {family}.{suggestion(layout, known)}")
    return known[layout].to_theirs(tensors)


def family_of(model: nn.Module) -> str:
    """The family file of the backbone inside `model`: "xcit", "convit", ..."""
    backbone = next((m for m in model.modules() if isinstance(m, Backbone)), None)
    if backbone is None:
        raise ValueError(f"{type(model).__name__} holds no backbone of this package.")
    return type(backbone).__module__.rsplit(".", 1)[-1]


def config_of(folder: str | Path) -> dict[str, Any]:
    """`config.json` in a folder from timm or the hub; {} if there is none.

    Raises:
        BadFile: if it is not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise BadFile(f"{path} is not a JSON object.")
    return config


def _file_of(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / "recipe.toml").is_file():
        raise BadFile(f"{folder} holds no weights: this run has none yet.")
    raise BadFile(f"{folder} holds no weights; a folder has {' or '.join(FOLDER_FILES)}.")


def _unwrap(value: Any, source: str, entry: str | None, inert: tuple[str, ...] = ()) -> State:
    """The state dict inside the object that a training program saved."""
    if not isinstance(value, Mapping):
        raise BadFile(f"{source} holds no state dict but {type(value).__name__}.")
    value = from_vissl(value)
    entries = [key for key in ENTRIES if _is_state(value.get(key))]
    if entry is not None:
        if not _is_state(value.get(entry)):
            have = ", ".join(map(repr, entries)) or "none"
            raise BadFile(f"{source} has no weights under {entry!r}; entries with weights: {have}.")
    elif entries:
        entry = entries[0]
    elif not _is_state(value):
        have = ", ".join(repr(key) for key in list(value)[:8])
        raise BadFile(f"{source} holds no weights; its entries are {have or 'none'}.")
    state = value if entry is None else value[entry]
    tensors, projection = without_projection({str(k): v for k, v in state.items() if isinstance(v, Tensor)})
    if len(tensors) + len(projection) < len(state):
        other = next(k for k, v in state.items() if not isinstance(v, Tensor))
        raise BadFile(f"{source}: {other!r} is no tensor but {type(state[other]).__name__}.")
    return State(
        source, tensors, entry, tuple(k for k in entries if k != entry), inert, projection=projection
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


class _Same:
    """The identity layout: our own names."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)


def _layouts(model: nn.Module, more: Mapping[str, Names]) -> dict[str, Names]:
    return {"ours": _Same(), **more, **weights.LAYOUTS.get(family_of(model), {})}


def _recognise(
    state: State, target: Mapping[str, Tensor], layouts: Mapping[str, Names], layout: str | None
) -> tuple[str, dict[str, Tensor], int, str, Collection[str]]:
    """The layout that matches most names (then shapes) of the model.

    Returns:
        Its name, the translation, the count of renamed, the removed prefix, and the names without that prefix.
    """
    if layout is not None and layout not in layouts:
        raise ValueError(f"Unknown layout {layout!r}.{suggestion(layout, layouts)}")
    best: tuple[tuple[int, int, int], str, dict[str, Tensor], int, str, Collection[str]] | None = None
    inside = any(key.startswith("backbone.") for key in target)
    for tensors, prefix, beside in _stripped(state.tensors, inside):
        for name in [layout] if layout else layouts:
            named = layouts[name].to_ours(tensors)
            hits = [key for key in named if key in target]
            shapes = sum(named[key].shape == target[key].shape for key in hits)
            score = (len(hits), shapes, -len(named))
            if best is None or score > best[0]:
                best = score, name, named, sum(key not in tensors for key in named), prefix, beside
    assert best is not None  # there is at least one layout and one way to strip
    score, name, named, renamed, prefix, beside = best
    if 2 * score[0] < min(len(target), len(state.tensors)):
        raise BadFile(
            f"{state.source} does not fit: at best ({name}) {score[0]} of the model's {len(target)} names are "
            f"among its {len(state.tensors)}, which begin with {next(iter(state.tensors))!r}."
        )
    return name, named, renamed, prefix, beside


def _stripped(
    tensors: Mapping[str, Tensor], inside: bool
) -> Iterator[tuple[dict[str, Tensor], str, Collection[str]]]:
    """Candidates: the names without a common prefix, or without that of the model; without or with `backbone.`.

    inside: whether the model has its backbone under that name.

    Yields:
        The tensors, the removed prefix, and the names without that prefix.
    """
    plain, prefix, _ = stripped(tensors)
    ways: list[tuple[dict[str, Tensor], str, Collection[str]]] = [(plain, prefix, ())]
    for wrapper in WRAPPERS:  # a LightningModule has losses and metrics beside its model
        mine = {key: value for key, value in plain.items() if key.startswith(wrapper)}
        if 0 < len(mine) < len(plain):
            beside = {key: value for key, value in plain.items() if key not in mine}
            inner, removed, _ = stripped(mine)
            ways.append(({**beside, **inner}, prefix + removed, tuple(beside)))
    for way, removed, names in ways:
        yield way, removed, names
        if any(key.startswith("backbone.") for key in way):
            yield {key.removeprefix("backbone."): value for key, value in way.items()}, removed, names
        elif inside:
            kept = {*HEADS, *names}
            yield {k if k in kept else f"backbone.{k}": v for k, v in way.items()}, removed, names


def stripped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """Remove prefixes and counters that training programs add.

    Returns:
        The state dict, the prefix shared by all names, and the names of EMA counters.
    """
    counters = [key for key in tensors if key.rsplit(".", 1)[-1] in AVERAGE_COUNTERS]
    plain = {key: value for key, value in tensors.items() if key not in counters}
    prefix = ""
    while plain:
        first = next(iter(plain)).split(".", 1)[0] + "."
        if first.endswith(("head.", *OWN)) or not all(key.startswith(first) for key in plain):
            break
        prefix += first
        plain = {key.removeprefix(first): value for key, value in plain.items()}
    inner = {key.replace("_orig_mod.", ""): value for key, value in plain.items()}  # compiled submodules
    return inner, prefix, counters


def _fit_head(named: dict[str, Tensor], target: Mapping[str, Tensor], report: Report) -> None:
    """Drop classifier tensors for another number of classes; drop them all for a model without classes."""
    theirs, ours = named.get(HEADS[0]), target.get(HEADS[0])
    if theirs is None or not any(key.startswith("backbone.") for key in target):
        return
    if ours is None and not any(key.startswith("head.") for key in target):
        report.dropped += [f"{key} (no head)" for key in HEADS if named.pop(key, None) is not None]
    elif ours is not None and theirs.shape[0] != ours.shape[0]:
        change = f"{theirs.shape[0]} classes, the model has {ours.shape[0]}"
        report.dropped += [f"{key} ({change})" for key in HEADS if named.pop(key, None) is not None]
        report.missing += [f"{key} (fresh)" for key in HEADS if key in target]


def _fit_stem(
    named: dict[str, Tensor], target: Mapping[str, Tensor], model: nn.Module, report: Report
) -> None:
    """Adapt the first convolution to other input channels: summed for one, repeated and scaled for more."""
    backbone = next(m for m in model.modules() if isinstance(m, Backbone))
    convs = (
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == backbone.in_chans
    )
    key = f"{next(convs, '')}.weight"
    if key not in named or named[key].ndim != 4 or named[key].shape[1] == target[key].shape[1]:
        return
    old, new = named[key], target[key].shape[1]
    if old.shape[0] != target[key].shape[0] or old.shape[2:] != target[key].shape[2:]:
        return
    have = old.shape[1]
    wide = old.float().repeat(1, -(-new // have), 1, 1)[:, :new] * (have / new)
    named[key] = (old.float().sum(dim=1, keepdim=True) if new == 1 else wide).to(old.dtype)
    report.resized.append(f"{key} {have} -> {new} channels")


def _image_size(state: State) -> int | tuple[int, int] | None:
    """The image size in the header of our file; None: no header."""
    size = state.header.options.get("image_size") if state.header else None
    return (size[0], size[1]) if isinstance(size, (list, tuple)) else size


def _fit_tables(
    named: dict[str, Tensor],
    target: Mapping[str, Tensor],
    model: nn.Module,
    image_size: int | tuple[int, int] | None,
    report: Report,
) -> None:
    """Resize position embeddings and relative bias tables to the model's image size, bicubic.

    image_size: that of the weights; None: square.
    """
    backbone = next(m for m in model.modules() if isinstance(m, Backbone))
    patches = getattr(backbone, "patch_embed", None)
    grid = patches.grid(image_size) if image_size and isinstance(patches, PatchEmbed) else None
    for name, module in model.named_modules():
        key = f"{name}.table"
        if not isinstance(module, (LearnedPosition, RelativeBias)) or key not in named:
            continue
        old, shape = named[key], target[key].shape
        same_grid = grid in (None, module.grid) if isinstance(module, LearnedPosition) else True
        if (old.shape == shape and same_grid) or old.ndim != len(shape) or old.shape[-1] != shape[-1]:
            continue
        try:
            if isinstance(module, LearnedPosition):
                named[key] = module.fit(old, grid)
            else:
                named[key] = resize_table(old, module.window_size)
        except ValueError as error:
            raise BadFile(f"{report.source}: {key!r} cannot be resized. {error}") from None
        report.resized.append(f"{key} {_shape(old)} -> {_shape(named[key])}")


def _check(
    named: dict[str, Tensor], target: Mapping[str, Tensor], report: Report, allow: Sequence[str]
) -> None:
    """Check that the remaining names and shapes agree; allowed differences are removed and reported."""
    fresh = {text.removesuffix(" (fresh)") for text in report.missing}
    surplus = [key for key in named if key not in target]
    missing = [key for key in target if key not in named and key not in fresh]
    other = [key for key in named if key in target and named[key].shape != target[key].shape]
    report.dropped += [key for key in (*surplus, *other) if _allowed(key, allow)]
    report.missing += [key for key in (*missing, *other) if _allowed(key, (*allow, COUNTERS))]
    wrong = [f"{key!r} is {_shape(named[key])}, the model's {_shape(target[key])}" for key in other]
    for title, keys, patterns in (
        ("missing", missing, (*allow, COUNTERS)),
        ("too many", surplus, allow),
    ):
        left = [repr(key) for key in keys if not _allowed(key, patterns)]
        if left:
            raise BadFile(f"{report.source} does not fit ({report.layout}): {title}: {_some(left)}.")
    left = [text for text, key in zip(wrong, other, strict=True) if not _allowed(key, allow)]
    if left:
        raise BadFile(f"{report.source} does not fit ({report.layout}): {_some(left)}.")
    for key in (*surplus, *other):
        del named[key]


def _named_model(header: Header) -> str:
    """A model as a message names it, with the options that it was built with."""
    options = [f"{key}={value}" for key, value in header.options.items() if key != "image_size"]
    return " ".join((header.model, f"({', '.join(options)})" if options else "")).strip()


def _allowed(key: str, patterns: Iterable[str]) -> bool:
    names = (key, key.removeprefix("backbone."))
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _some(items: Sequence[str], most: int = 4) -> str:
    if not items:
        return "none"
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
