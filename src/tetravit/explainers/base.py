"""The contract of an explanation method, and the record that it returns.

A file in this folder declares its methods without importing torch, so that `tetravit explain --help` is fast: the
function of a method imports what it needs.

Shapes: B images, H W the grid of a map, (Hi, Wi) the model's input in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tetravit.predictors.base import Option, numbers, whole
from tetravit.structures import AttentionKind, Kind

if TYPE_CHECKING:
    from torch import Tensor

    from tetravit.backbones import Backbone
    from tetravit.models import Model

ALL: tuple[Kind, ...] = ("classify", "segment", "detect")


@dataclass(frozen=True)
class Map:
    """What a method gives for one image: raw values, never scaled for display.

    values: float32 on the CPU, (H, W), or (slices, H, W) with a name in `slices` for each, such as "head 3".
    kind: name of the quantity. layer: the module it belongs to.
    stride, centre: value (i, j) is at pixel (stride * i + centre, stride * j + centre) of the model's input, counted
        from 0 at the centre of the first pixel; stride 0: the values are not spatial, but rows and columns named by
        `axes`.
    normalised: which sums of values are constant. seen: sum of the attention weights over patches of the image
        (slices,); None: not attention. query: (row, column) of the query in its grid; query_stride, query_centre: its
        stride and centre; None: in the grid of the values. target: the explained score.
    signed: whether negative values are meaningful. details: further numbers, JSON-ready.
    samples: the points whose weights are summed in the values: (slices, n, 3), x and y in pixels of the model's
        input, counted from its corner, and the weight; pictures show these. box: of the explained object in the
        model's input, x1 y1 x2 y2.
    """

    values: Tensor
    kind: str
    layer: str = ""
    slices: tuple[str, ...] = ()
    stride: float = 0.0
    centre: float = 0.0
    axes: tuple[str, str] = ("row", "column")
    normalised: str = ""
    seen: Tensor | None = None
    query: tuple[int, int] | None = None
    query_stride: float | None = None
    query_centre: float = 0.0
    target: str = ""
    signed: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    samples: Tensor | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.values.detach())

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.values.shape[-2], self.values.shape[-1])

    @property
    def has_places(self) -> bool:
        """Whether the values lie in the picture."""
        return self.stride > 0

    @property
    def query_box(self) -> tuple[float, float, float, float] | None:
        """The square of the query, left, top, right, bottom in pixels of the model's input, edges of pixels."""
        if self.query is None or not self.has_places:
            return None
        here = self.query_stride is None
        stride, centre = (self.stride, self.centre) if here else (self.query_stride, self.query_centre)
        assert stride is not None
        (y, x), half = ((stride * place + centre + 0.5 for place in self.query), stride / 2)
        return x - half, y - half, x + half, y + half

    def select(self, index: int) -> Map:
        """The map of one slice.

        Raises:
            ValueError: if there is no such slice.
        """
        if not 0 <= index < len(self.slices):
            known = f"heads 0 to {len(self.slices) - 1}" if self.slices else "no heads"
            raise ValueError(f"{self.layer or 'The map'} has {known}; got head {index!r}.")
        seen = None if self.seen is None else self.seen[index : index + 1]
        kept = (self.slices[index],)
        samples = None if self.samples is None else self.samples[index : index + 1]
        return replace(self, values=self.values[index : index + 1], slices=kept, seen=seen, samples=samples)

    def mean(self) -> Map:
        """The mean over the slices, as one map (H, W)."""
        if not self.slices:
            return self
        seen = None if self.seen is None else self.seen.mean(dim=0, keepdim=True)
        samples = None if self.samples is None else self.samples.flatten(0, 1)[None]  # of all slices
        return replace(self, values=self.values.mean(dim=0), slices=(), seen=seen, samples=samples)

    def with_target(
        self, target: str, details: Mapping[str, Any], box: tuple[float, float, float, float] | None = None
    ) -> Map:
        """The same map of a target, with its figures and its box."""
        return replace(self, target=target, details=details, box=box)

    def to_dict(self) -> dict[str, Any]:
        """All but the values, JSON-ready, with their smallest, largest and sum; small tables with their values.

        NaN becomes None.
        """
        flat = self.values.flatten(-2) if self.slices else self.values.flatten()[None]
        finite = [row[row.isfinite()] for row in flat]
        rows: dict[str, Any] = {
            "kind": self.kind,
            "layer": self.layer,
            "grid": list(self.grid),
            "slices": list(self.slices),
            "min": [float(row.min()) if len(row) else None for row in finite],
            "max": [float(row.max()) if len(row) else None for row in finite],
            "sum": [float(row.sum()) for row in finite],
            "normalised": self.normalised,
        }
        if self.has_places:
            rows |= {"stride": self.stride, "centre": self.centre}
        else:
            rows |= {"axes": list(self.axes)}
            if self.values.ndim == 2:
                rows["values"] = [[v if v == v else None for v in row] for row in self.values.tolist()]
        if self.seen is not None:
            rows["seen"] = self.seen.tolist()
        if self.query is not None:
            rows["query"] = list(self.query)
        if self.target:
            rows["target"] = self.target
        return {**rows, **self.details}


@dataclass(frozen=True)
class Request:
    """What is to be explained. None: the method's own choice.

    layer: the name of a module of the backbone, several comma-separated, or "all"; or an index into the method's
    layers in order of depth, from 0. query: x, y in pixels of the model's input, counted from 0 at the centre of the
    first pixel. class_: a class index. options: of the method, by name; None if not given. announce: prints a line
    before a computation with many forward passes.
    """

    layer: str | int | None = None
    query: tuple[float, float] | None = None
    class_: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    announce: Callable[[str], object] = field(default=lambda line: None)

    def option(self, name: str, otherwise: Any = None) -> Any:
        """The value of one of the method's own options."""
        value = self.options.get(name)
        return otherwise if value is None else value


@dataclass(frozen=True)
class Method:
    """A row of the menu `EXPLAIN`: `tetravit explain --method NAME`.

    about: one line: the content of the map, and the families.
    run: (model, images (1, C, Hi, Wi) float normalized, request) -> maps. The model is in evaluation mode, without
        replaced forward passes. If `needs_image` is false, images may be None.
    kinds: kinds of models. attention: required kinds of attention, one of them; (): any.
    takes: which of "layer", "head", "query" and "class" it uses. options: specific to the method.
    why_not: why the method does not apply to a backbone, as the end of a sentence; "": it applies.
    heads: names of heads it applies to; (): any.
    needs_gradients: not for models without gradients. any_form: it only calls the model, so it applies to optimised
        models too.
    source: of the method.
    """

    about: str
    run: Callable[[Model, Any, Request], list[Map]]
    kinds: tuple[Kind, ...] = ALL
    attention: tuple[AttentionKind, ...] = ()
    takes: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    why_not: Callable[[Backbone], str] | None = None
    needs_image: bool = True
    needs_gradients: bool = False
    heads: tuple[str, ...] = ()
    any_form: bool = False
    source: str = ""

    def refusal(self, model: Model) -> str:
        """Why the method has no meaning for a model: the end of a sentence; "": it has."""
        backbone = model.backbone
        if self.why_not is not None and (reason := self.why_not(backbone)):
            return reason
        if self.attention and not set(self.attention) & set(backbone.attention_kinds):
            known = ", ".join(backbone.attention_kinds) or "none"
            return f"it needs attention of kind {' or '.join(self.attention)}; this backbone has {known}"
        if model.kind not in self.kinds:
            return f"it is for {' and '.join(NOUNS[kind] for kind in self.kinds)}"
        if self.heads and model.head_name not in self.heads:
            return f"it needs the head {' or '.join(self.heads)}; this model has {model.head_name}"
        if "class" in self.takes and not model.num_classes:
            return "the weights have no classes"
        return ""


REGION = Option("region", "Segmenters: box of the explained pixels.", "X1,Y1,X2,Y2", numbers)
DETECTION = Option("detection", "Detectors: index of the detection, from 0 by score.", "N", whole)

NOUNS: Mapping[Kind, str] = {"classify": "classifiers", "segment": "segmenters", "detect": "detectors"}


def named_heads(count: int) -> tuple[str, ...]:
    """Names of the slices of a map with one slice per head."""
    return tuple(f"head {i}" for i in range(count))


def chosen(names: Sequence[str], layer: str | int | None, otherwise: Sequence[str]) -> list[str]:
    """The layers of a request among `names`, in order of depth.

    "blocks.3" is an alias of "blocks.3.attn".

    Raises:
        ValueError: if there is no such layer.
    """
    if layer is None:
        return list(otherwise)
    if isinstance(layer, str) and layer.isdigit():
        layer = int(layer)
    if isinstance(layer, int):
        if not 0 <= layer < len(names):
            raise ValueError(f"Layer {layer} does not exist: layers are 0 to {len(names) - 1}.")
        return [names[layer]]
    if layer == "all":
        return list(names)
    wanted = []
    for part in layer.split(","):
        matches = [name for name in names if name == part] or [n for n in names if n == f"{part}.attn"]
        if not matches:
            raise ValueError(f"Layer {part!r} does not exist.{_known(part, names)}")
        wanted += matches
    return [name for name in names if name in wanted]


def _known(part: str, names: Sequence[str]) -> str:
    from tetravit.registry import suggestion

    hint = suggestion(part, names)
    return hint or f" There are {len(names)} layers, {names[0]} to {names[-1]}."
