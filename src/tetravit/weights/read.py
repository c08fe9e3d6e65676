"""Weights of any origin into a model: read, unwrapped, recognised, renamed, made to fit, and reported.

One file: each step of reading, from a state dict to the report, is one function, in the order in which they run.

Nothing is left out in silence. What follows from building another model (another number of classes, of
channels, another image size) is done and reported; any other difference is an error until a pattern allows it.
"""

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
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

# Where training programs keep the weights, in the order they are looked for. Averages come last: of the published
# trainers one evaluates them (timm's) and one only saves them (DeiT's), so they are taken when they are asked for.
# A DINO run's published features are the teacher's.
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
COUNTERS = "*.num_batches_tracked"  # how often a BatchNorm was updated; carries no weights
# Names that programs put in front of every tensor, and the counters that averaged models hold beside them.
WRAPPERS = (
    *("_orig_mod.", "module.", "model.", "net.", "network.", "encoder.", "student.", "teacher."),
    *("ema_model.", "online_model."),
)
AVERAGE_COUNTERS = ("n_averaged", "num_updates")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


class Names(Protocol):
    """What turns a state dict of one layout into ours: a `KeyMap`, or several of them joined."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class State:
    """A state dict as a file holds it. entry: the key it was under, None: the file is the dict itself.

    others: further entries that hold weights. inert: classes in the file whose objects were not rebuilt.
    header: what the file says about itself, where it is one of ours. projection: tensors of a projection head, which
    no model has.
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
    """The report of every tensor. Printed: five lines, and one on the classes where their numbers have a meaning.

    prefix: removed from the front of every name. classes: what the numbers of the classes stand for.
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
    """The state dict of a file, under the names the file uses. Nothing in the file is executed.

    Args:
        source: a file of `torch.save` of any age, a safetensors file, a folder as `save_pretrained` of timm or
            the Hugging Face hub leave it, or a state dict.
        entry: the key of the weights in the file ("state_dict_ema", ...); None: the first of `ENTRIES`.
        verify: compare the checksums that the file holds, if it holds any.

    Raises:
        BadFile: if the file is damaged, needs code, or holds no weights.
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
    """Put weights of any known layout into a model. The model is changed only if everything fits.

    Args:
        model: a backbone of this package, or anything that holds one.
        source: what `read_state` reads, or what it returned.
        layout: "ours", "official", "timm", ...; None: the one whose names fit the model best.
        entry: as in `read_state`.
        allow: shell patterns of names, theirs or ours, that may be missing or too many ("head.*").
        layouts: more layouts to try, by name (those of dense heads).
        verify: compare the checksums of the file, and compute the fingerprint of the weights.

    Returns:
        What was matched, renamed, resized, dropped and missing.

    Raises:
        BadFile: if the file is damaged, or does not fit the model; the tensors are named.
        ValueError: if there is no such layout.
    """
    state = source if isinstance(source, State) else read_state(source, entry=entry, verify=verify)
    target = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    layout, named, renamed = _recognise(state, target, _layouts(model, layouts or {}), layout)
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
    _, report.prefix, counters = stripped(state.tensors)
    report.dropped += [f"{key} (a counter)" for key in counters]
    _fit_head(named, target, report)
    _fit_stem(named, target, model, report)
    _fit_tables(named, target, model, _image_size(state), report)
    _check(named, target, report, allow)
    report.matched = len(named)
    on_meta = any(t.is_meta for t in target.values())
    model.load_state_dict(named, strict=False, assign=on_meta)
    return report


def rename(
    tensors: Mapping[str, Tensor], family: str, layout: str, layouts: Mapping[str, Names] | None = None
) -> dict[str, Tensor]:
    """Weights under our names -> the same under the names of `layout`, for a program that expects those.

    Raises:
        ValueError: if the family has no such layout.
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
    """The content of `config.json` in a folder of timm or of the hub; {} where there is none.

    Raises:
        BadFile: if it is no JSON object.
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
    raise BadFile(f"{folder} holds no weights; a folder has {' or '.join(FOLDER_FILES)}.")


def _unwrap(value: Any, source: str, entry: str | None, inert: tuple[str, ...] = ()) -> State:
    """The weights inside what a training program saved."""
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
    """Our own names."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)


def _layouts(model: nn.Module, more: Mapping[str, Names]) -> dict[str, Names]:
    return {"ours": _Same(), **more, **weights.LAYOUTS.get(family_of(model), {})}


def _recognise(
    state: State, target: Mapping[str, Tensor], layouts: Mapping[str, Names], layout: str | None
) -> tuple[str, dict[str, Tensor], int]:
    """The layout whose translation has most names (then shapes) of the model, the translation, how many renamed."""
    if layout is not None and layout not in layouts:
        raise ValueError(f"Unknown layout {layout!r}.{suggestion(layout, layouts)}")
    best: tuple[tuple[int, int, int], str, dict[str, Tensor], int] | None = None
    for tensors in _stripped(state.tensors):
        for name in [layout] if layout else layouts:
            named = layouts[name].to_ours(tensors)
            hits = [key for key in named if key in target]
            shapes = sum(named[key].shape == target[key].shape for key in hits)
            score = (len(hits), shapes, -len(named))
            if best is None or score > best[0]:
                best = score, name, named, sum(key not in tensors for key in named)
    assert best is not None  # there is at least one layout and one way to strip
    score, name, named, renamed = best
    if 2 * score[0] < min(len(target), len(state.tensors)):
        raise BadFile(
            f"{state.source} does not fit: at best ({name}) {score[0]} of the model's {len(target)} names are "
            f"among its {len(state.tensors)}, which begin with {next(iter(state.tensors))!r}."
        )
    return name, named, renamed


def _stripped(tensors: Mapping[str, Tensor]) -> Iterable[dict[str, Tensor]]:
    """The names as they are, without the wrapper of parallel training, and without that of a detector."""
    plain, _, _ = stripped(tensors)
    yield plain
    if any(key.startswith("backbone.") for key in plain):
        yield {key.removeprefix("backbone."): value for key, value in plain.items()}


def stripped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """A state dict without what training programs add.

    Returns:
        The state dict, the prefix that all of its names had, and the names of counters of averages.
    """
    counters = [key for key in tensors if key.rsplit(".", 1)[-1] in AVERAGE_COUNTERS]
    plain = {key: value for key, value in tensors.items() if key not in counters}
    prefix = ""
    while plain:
        first = next(iter(plain)).split(".", 1)[0] + "."
        if first not in WRAPPERS or not all(key.startswith(first) for key in plain):
            break
        prefix += first
        plain = {key.removeprefix(first): value for key, value in plain.items()}
    inner = {key.replace("_orig_mod.", ""): value for key, value in plain.items()}  # compiled submodules
    return inner, prefix, counters


def _fit_head(named: dict[str, Tensor], target: Mapping[str, Tensor], report: Report) -> None:
    """A classifier with other classes gets a fresh head; one without classes takes none."""
    theirs, ours = named.get(HEADS[0]), target.get(HEADS[0])
    if theirs is None or not any(key.startswith("backbone.") for key in target):
        return
    if ours is None and not any(key.startswith("head.") for key in target):
        report.dropped += [f"{key} (no head)" for key in HEADS if named.pop(key, None) is not None]
    elif ours is not None and theirs.shape[0] != ours.shape[0]:
        change = f"{theirs.shape[0]} classes, {ours.shape[0]} asked for"
        report.dropped += [f"{key} ({change})" for key in HEADS if named.pop(key, None) is not None]
        report.missing += [f"{key} (fresh)" for key in HEADS if key in target]


def _fit_stem(
    named: dict[str, Tensor], target: Mapping[str, Tensor], model: nn.Module, report: Report
) -> None:
    """The first convolution for images with other channels: summed for one, repeated and scaled for more."""
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
    """The image size in the header of a file of ours; None: it has none."""
    size = state.header.options.get("image_size") if state.header else None
    return (size[0], size[1]) if isinstance(size, (list, tuple)) else size


def _fit_tables(
    named: dict[str, Tensor],
    target: Mapping[str, Tensor],
    model: nn.Module,
    image_size: int | tuple[int, int] | None,
    report: Report,
) -> None:
    """Position embeddings and relative bias tables at the model's image size, bicubic.

    image_size: the one the weights were set up for; None: a square one.
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
    """What is left must agree, name by name and shape by shape; what is allowed is taken out and reported."""
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
