"""Descriptions of published weights: URLs, and maps from their tensor names and shapes to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tetravit.structures import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

# Regular expression of each placeholder in a template.
PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "k": r"\d+", "p": r"weight|bias", "rest": r".+"}

Side = str | Mapping[str, int]


@dataclass(frozen=True)
class Rule:
    """One line of a key map: their name, our name.

    A side is a template ("blocks.{i}.attn.{rest}"), or several templates with their shares of the rows of one larger
    tensor ({"attn.q.{p}": 1, "attn.kv.{p}": 2}): the concatenated tensors of one side equal those of the other.
    kernel: the side that stores a matrix as a 1 x 1 convolution.
    """

    theirs: Side
    ours: Side
    kernel: Literal["theirs", "ours"] | None = None


class KeyMap:
    """Rules, tried in order, that map every tensor name of a layout; usable in both directions.

    dropped: patterns of entries without weights (index buffers), ignored on reading. derived: computes these entries
    from the other ones, on writing. backbone: prefix of backbone names in files of such heads.
    """

    def __init__(
        self,
        *rules: Rule,
        dropped: tuple[str, ...] = (),
        derived: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = lambda state: {},
        backbone: str = "backbone.",
    ) -> None:
        self.derived, self.backbone = derived, backbone
        self.rules = tuple(_Compiled(rule) for rule in rules)
        self.dropped = tuple(re.compile(pattern) for pattern in dropped)

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict from their layout to ours. Names without a rule are kept."""
        kept = {key: value for key, value in state.items() if not any(p.fullmatch(key) for p in self.dropped)}
        return _translate(kept, [(rule.theirs, rule.ours, rule.to_ours) for rule in self.rules])

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict from our layout to theirs."""
        theirs = _translate(state, [(rule.ours, rule.theirs, rule.to_theirs) for rule in self.rules])
        return {**theirs, **self.derived(theirs)}


@dataclass(frozen=True)
class Adapter:
    """Names of a family's adapter from backbone to pyramid, which its authors store in their backbone.

    unused: prefixes of our names that dense checkpoints lack, because only classification uses them.
    """

    names: KeyMap
    unused: tuple[str, ...] = ("backbone.norm.",)


class _Compiled:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.theirs, self.ours = _Parts(rule.theirs), _Parts(rule.ours)

    def to_ours(self, x: Tensor) -> Tensor:
        return _kernel(x, {"ours": "add", "theirs": "remove", None: "keep"}[self.rule.kernel])

    def to_theirs(self, x: Tensor) -> Tensor:
        return _kernel(x, {"theirs": "add", "ours": "remove", None: "keep"}[self.rule.kernel])


class _Parts:
    """The templates of one side, with their shares of rows."""

    def __init__(self, side: Side) -> None:
        self.shares = {side: 1} if isinstance(side, str) else dict(side)

    @cached_property
    def patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(_pattern(template)) for template in self.shares]

    def match(self, key: str) -> dict[str, str] | None:
        """The values of the placeholders if `key` matches one of the parts, else None."""
        groups = next((f for p in self.patterns if (f := p.fullmatch(key))), None)
        return groups.groupdict() if groups else None

    def names(self, values: Mapping[str, str]) -> list[str]:
        return [template.format(**values) for template in self.shares]


def _translate(
    state: Mapping[str, Tensor], steps: list[tuple[_Parts, _Parts, Callable[[Tensor], Tensor]]]
) -> dict[str, Tensor]:
    remaining, out = dict(state), {}
    for key in state:
        if key not in remaining:
            continue  # already used in an earlier tensor
        for source, target, change in steps:
            values = source.match(key)
            if values is None or not all(name in remaining for name in source.names(values)):
                continue
            whole = [remaining.pop(name) for name in source.names(values)]
            names = target.names(values)
            if len(whole) == 1 == len(names):
                out[names[0]] = change(whole[0])
                break
            import torch  # imported late: the catalogue needs no torch

            tensor = change(torch.cat(whole) if len(whole) > 1 else whole[0])
            shares = list(target.shares.values())
            unit = tensor.shape[0] // sum(shares)
            for name, part in zip(names, tensor.split([unit * s for s in shares]), strict=True):
                out[name] = part.clone() if len(names) > 1 else part
            break
        else:
            out[key] = remaining.pop(key) if key in remaining else state[key]
    return out


def _pattern(template: str) -> str:
    pieces = re.split(r"\{(\w+)\}", template)
    seen: set[str] = set()
    pattern = re.escape(pieces[0])
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{PLACEHOLDERS[name]})"
        pattern += re.escape(text)
        seen.add(name)
    return pattern


def _kernel(x: Tensor, change: str) -> Tensor:
    if change == "add" and x.ndim == 2:
        return x[:, :, None, None]
    if change == "remove" and x.ndim == 4:
        return x.flatten(1)
    return x


@dataclass(frozen=True)
class Source:
    """One URL of a checkpoint.

    layout: naming of the tensors in the file; entry: the key of the weights, None: the file is the state dict.
    sha256: of the file, complete or the published prefix; "": unknown, then it is recorded at the first download and
    later downloads are compared with it.
    """

    url: str
    layout: str
    entry: str | None = None
    sha256: str = ""

    @property
    def manual(self) -> bool:
        """Whether the file can only be downloaded in a browser, not by a script."""
        return self.url.startswith("https://drive.google.com/")


@dataclass(frozen=True)
class Checkpoint:
    """A published set of weights.

    model, options: arguments of `create_model`. task: task of the model; "embed": no head. data: training data.
    sources: the authors' file first, then copies of the same weights. published: scores from the authors, in percent
    (top1, knn, linear, box_ap, mask_ap, miou, ...), in `published_in`. measured: scores of the same weights measured
    by others, `measured_by`. preprocess: preprocessing behind these scores; None if the task has its own. licence: of
    the file; commercial: whether it allows commercial use. The training images have licences of their own.
    """

    model: str
    tag: str
    sources: tuple[Source, ...]
    data: str
    licence: str
    commercial: bool
    task: Literal["classify", "embed", "detect", "segment"] = "classify"
    head: str | None = None
    num_classes: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    published_in: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    measured_by: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"


def menu(*rows: Checkpoint) -> dict[str, Checkpoint]:
    """Rows by name."""
    return {row.name: row for row in rows}


def hub(repository: str) -> str:
    """URL of the weights of a timm repository on the Hugging Face hub."""
    return f"https://huggingface.co/{repository}/resolve/main/model.safetensors"


def drive(key: str) -> str:
    """Page of a file on Google Drive."""
    return f"https://drive.google.com/file/d/{key}/view"
