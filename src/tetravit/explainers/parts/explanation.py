"""`explain`: one method on one picture, and what it gives: records, a picture, files.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tetravit.explainers.base import Map, Method, Request
from tetravit.registry import pick, suggestion

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from tetravit.explainers.parts.view import View
    from tetravit.models import Model

Scaling = Literal["row", "map", "log"]
PLAIN = "An optimised model has no gradients and forms no attention maps: the plain model is used."


@dataclass(frozen=True)
class Explanation:
    """The maps of one method for one picture. A notebook shows them as a picture.

    method, model: by name. image: name of the picture. maps: records, the most important first. view: location of the
    model's input in the picture; pixels: the picture, uint8 (C, H0, W0); input: the model's input (C, Hi, Wi); None:
    the method needs no picture. notes: remarks, one line each. check: results of `check_map`.
    """

    method: str
    model: str
    image: str
    maps: tuple[Map, ...]
    view: View | None = None
    pixels: Tensor | None = field(default=None, repr=False)
    input: Tensor | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    check: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but values and pixels, JSON-ready: one line of `tetravit explain --json`."""
        row: dict[str, Any] = {"image": self.image, "model": self.model, "method": self.method}
        if self.view is not None:
            row["view"] = {
                "picture": list(self.view.picture),
                "input": list(self.view.sides),
                "seen": [round(value, 2) for value in self.view.seen],
                "share": round(self.view.share, 4),
            }
        row["maps"] = [one.to_dict() for one in self.maps]
        if self.notes:
            row["notes"] = list(self.notes)
        if self.check is not None:
            row["check"] = dict(self.check)
        return row

    def draw(
        self, *, scale: Scaling = "row", blocks: bool = False, mean: bool = False, as_published: bool = False
    ) -> Image:
        """The maps over the picture, each with the scale of its colours.

        Args:
            scale: "row": one range for all heads of a map; "map": each its own; "log": logarithmic, one range.
            blocks: draw each token as a block around its centre, instead of interpolating between centres.
            mean: only the mean over the heads.
            as_published: as in the authors' scripts: the model's input instead of the picture, each token i as the
                block from pixel stride * i on regardless of its centre, min-max range per map.
        """
        from tetravit.explainers.parts.pictures import drawn

        return drawn(self, scale=scale, blocks=blocks, mean=mean, as_published=as_published)

    def on_picture(self, index: int = 0) -> np.ndarray:
        """A map at the size of the picture, bilinear between the centres of its tokens: float32 (H0, W0).

        Heads are averaged. NaN outside the model's input.

        Raises:
            ValueError: if the map is not spatial.
        """
        import numpy as np

        if self.view is None or not self.maps[index].has_places:
            raise ValueError(f"The maps of {self.method} have no places in the picture; use `maps`.")
        values, defined = self.view.paint(self.maps[index].mean())
        return np.where(defined.numpy(), values.numpy(), np.float32("nan")).astype(np.float32)

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write the raw values as NAME.npz, arrays "map0", "map1", ..., and `to_dict` as a line of NAME.json.

        Returns:
            The .npz file.
        """
        import numpy as np

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = name or f"{Path(self.image).stem or self.model}-{self.method}"
        file = folder / f"{stem}.npz"
        arrays = {f"map{i}": one.values.numpy() for i, one in enumerate(self.maps)}
        np.savez(file, **arrays)  # type: ignore[arg-type]
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
        return file

    def _repr_png_(self) -> bytes:
        import io

        buffer = io.BytesIO()
        self.draw().save(buffer, "png")
        return buffer.getvalue()


def explain(
    model: Model,
    image: Any,
    method: str,
    *,
    layer: str | int | None = None,
    head: int | None = None,
    query: tuple[float, float] | None = None,
    class_: int | str | None = None,
    size: int | Literal["own"] | None = None,
    check: bool = False,
    boxes: Sequence[Sequence[float]] = (),
    mask: np.ndarray | None = None,
    announce: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> Explanation:
    """Explain one picture; see `tetravit.explain`.

    check, boxes, mask: see `parts.check.checked`.
    announce: prints a line before a method with many forward passes starts.
    """
    import torch

    from tetravit.data.preprocess import pixels as read
    from tetravit.data.preprocess import preprocess
    from tetravit.explainers.parts.view import uncropped, view_of

    name, row = find(method)
    plain, notes = (model, []) if row.any_form else plain_model(model)
    if reason := row.refusal(plain):
        raise ValueError(refused(name, plain, reason))
    _check_taken(name, row, {"layer": layer, "head": head, "query": query, "class": class_}, options)
    given = _given(plain, options)
    request = Request(layer, None, class_number(plain, class_), given, announce)
    settings_used: dict[str, Any] = {}
    images = None
    if image is not None:
        picture = read(image, plain.input.channels)
        sides = (int(picture.shape[1]), int(picture.shape[2]))
        p = plain.input if size is None else uncropped(plain.input, size, sides)
        view = view_of(sides, p)
        prepared = preprocess(picture, p)
        request = replace(request, query=None if query is None else view.to_input(*query))
        request = replace(request, options=_placed(request.options, view))
        settings_used = {
            "view": view,
            "pixels": picture if picture.dtype == torch.uint8 else (255 * picture).byte(),
        }
        settings_used["input"] = prepared
        like = next(plain.parameters())
        images = prepared[None].to(like.device, like.dtype)
    elif row.needs_image:
        raise ValueError(f"{name} needs a picture.")
    training = plain.training
    plain.eval()
    try:
        maps = row.run(plain, images, request)
        if not maps:
            raise ValueError(f"{name} has no map of {plain.name} here: no layer has weights of that kind.")
        if check:
            settings_used["check"] = _checked(
                plain, row, maps, images, request, name, settings_used, boxes, mask
            )
    finally:
        plain.train(training)
    if "view" in settings_used:
        maps = [_boxed(one, settings_used["view"]) for one in maps]
    if head is not None:
        maps = [one.select(head) if one.slices else one for one in maps]
    notes += _remarks(maps, settings_used.get("view"))
    return Explanation(name, plain.name, _named(image), tuple(maps), notes=tuple(notes), **settings_used)


def _boxed(one: Map, view: View) -> Map:
    """A map with the box of its target in its details, in pixels of the picture."""
    if one.box is None:
        return one
    box = [round(edge, 2) for edge in view.to_picture(one.box)]
    return replace(one, details={**one.details, "box": box})


def _checked(
    model: Model,
    row: Method,
    maps: list[Map],
    images: Any,
    request: Request,
    name: str,
    settings: Mapping[str, Any],
    boxes: Sequence[Sequence[float]],
    mask: np.ndarray | None,
) -> Mapping[str, Any] | None:
    from tetravit.explainers.parts.check import checked

    if "class" in row.takes and model.kind == "classify":  # use the same class for the other head
        class_ = request.class_
        if class_ is None:
            import torch

            with torch.no_grad():
                class_ = int(model(images)[0].argmax())
        request = replace(request, class_=class_)
    plain = Explanation(name, model.name, "", tuple(maps), **settings)
    again = lambda other: row.run(other, images, request)[0].mean()  # noqa: E731
    return checked(model, plain, request, again=again, boxes=boxes, mask=mask).check


def find(method: str) -> tuple[str, Method]:
    """The method of a name, whatever its case and hyphens: "Grad-CAM" is "gradcam".

    Raises:
        ValueError: if there is none.
    """
    from tetravit.explainers import EXPLAIN

    plain = {_squashed(name): name for name in EXPLAIN}
    name = plain.get(ALIASES.get(_squashed(method), _squashed(method)), method)
    return name, pick(EXPLAIN, name, "method")


ALIASES = {  # names of the papers
    "lsa": "localattention",
    "gsa": "globalsubsampledattention",
    "cam": "gradcam",
    "xca": "crosscovariance",
    "gpsa": "gatedattention",
    "attentionrollout": "rollout",
    "attentionxgradient": "attentiongradient",
}


def methods_of(model: Model) -> dict[str, str]:
    """Every method, and why it has no meaning for the model; "": it has."""
    from tetravit.explainers import EXPLAIN

    return {name: row.refusal(model) for name, row in EXPLAIN.items()}


def refused(name: str, model: Model, reason: str) -> str:
    """The message for a method that has no meaning for a model."""
    able = ", ".join(other for other, why in methods_of(model).items() if not why)
    return f"{name} has no meaning for {model.name or 'this model'}: {reason}. Methods that have: {able}."


def plain_model(model: Model) -> tuple[Model, list[str]]:
    """The model with its own forward pass and in float32, and a note where that is another one."""
    import copy

    import torch

    replaced = [name for name in ("forward", "feature_maps", "segment", "detect") if name in model.__dict__]
    narrow = any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())
    if not replaced and not narrow:
        return model, []
    from tetravit.runtimes.base import over_same_tensors

    plain: Any = copy.deepcopy(model).float() if narrow else over_same_tensors(model)
    for name in replaced:
        del plain.__dict__[name]
    return plain, [PLAIN] if replaced else []


def class_number(model: Model, class_: int | str | None) -> int | None:
    """A class by number or by name, as a number.

    Raises:
        ValueError: if the model has no such class.
    """
    if class_ is None:
        return None
    names = list(model.class_names)
    if isinstance(class_, str) and class_ in names:
        return names.index(class_)
    if isinstance(class_, str) and not class_.lstrip("-").isdigit():
        if not names:
            raise ValueError(
                f"The classes of this model have no names; give a number below {model.num_classes}."
            )
        raise ValueError(f"Class {class_!r} does not exist.{suggestion(class_, names)}")
    number = int(class_)
    if not 0 <= number < model.num_classes:
        raise ValueError(f"Class {number} does not exist: classes are 0 to {model.num_classes - 1}.")
    return number


def _check_taken(name: str, row: Method, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises: ValueError for an option that the method does not take."""
    own = [option.name for option in row.options]
    for key, value in given.items():
        if value is not None and key not in row.takes:
            raise ValueError(f"{name} takes no {key}; it takes {_listed([*row.takes, *own])}.")
    for key, value in options.items():
        if key not in own and value is not None:
            raise ValueError(f"{name} takes no {key}; it takes {_listed([*row.takes, *own])}.")


def _given(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have a value.

    Raises:
        ValueError: for one that such a model does not have.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, kind, noun in (("region", "segment", "segmenters"), ("detection", "detect", "detectors")):
        if name in given and model.kind != kind:
            raise ValueError(f"{name} is for {noun}; the model is a {model.noun}.")
    return given


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no options"


def _placed(options: Mapping[str, Any], view: View) -> dict[str, Any]:
    """The options, `region` (x1, y1, x2, y2) brought from the picture to the model's input.

    Raises:
        ValueError: for a region that is no box in the picture.
    """
    region = options.get("region")
    if region is None:
        return dict(options)
    height, width = view.picture
    if len(region) != 4 or not (0 <= region[0] < region[2] <= width and 0 <= region[1] < region[3] <= height):
        raise ValueError(
            f"region is x1,y1,x2,y2 in a picture of {width} x {height} pixels; got"
            f" {','.join(f'{value:g}' for value in region)}."
        )
    left, top, right, bottom = view.seen
    x1, x2 = (min(max(x, left), right) for x in (region[0], region[2]))
    y1, y2 = (min(max(y, top), bottom) for y in (region[1], region[3]))
    if x1 >= x2 or y1 >= y2:
        raise ValueError("The region lies in the part of the picture that the crop leaves out.")
    first, last = view.to_input(x1, y1), view.to_input(max(x1, x2 - 1), max(y1, y2 - 1))
    return {**options, "region": (*first, *last)}


def _remarks(maps: Sequence[Map], view: View | None) -> list[str]:
    notes = list(dict.fromkeys(str(one.details["note"]) for one in maps if "note" in one.details))
    if view is not None and view.share < 0.995 and any(one.has_places for one in maps):
        notes.append(
            f"The model gets {100 * view.share:.0f} % of the picture; the rest is cropped and shaded."
        )
    return notes


def _named(image: Any) -> str:
    return str(image) if isinstance(image, str | Path) else "" if image is None else "image"


def _squashed(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
