"""Models by name: one builder behind `create_model`, `create_detector` and `create_segmenter`."""

import fnmatch
import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tetravit.heads import Head, heads_of
from tetravit.models.base import Model
from tetravit.models.classifier import Classifier
from tetravit.models.detector import Detector
from tetravit.models.names import Size, check_options, family, resolve
from tetravit.models.pretrained import load_backbone
from tetravit.models.segmenter import Segmenter
from tetravit.registry import pick
from tetravit.weights import convert
from tetravit.weights.read import Report, State, family_of, load_into, read_state, stripped

FIXED = ("channels", "strides", "embed_dim", "num_classes")  # head arguments that are not options

Weights = str | Path | Mapping[str, Any]


MODELS: Mapping[str, type[Model]] = {model.kind: model for model in (Classifier, Detector, Segmenter)}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    weights: Weights | None = None,
    accept_license: bool = False,
    which: Literal["teacher", "student"] | None = None,
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Classifier:
    """Build a classifier by name.

    Args:
        name: one of `list_models()`, an alias, or NAME.TAG, which is NAME with the published weights TAG.
        num_classes: number of classes; 0: the output is the embedding (B, embed_dim). None: that of the weights;
            without weights 1000.
        image_size: side in pixels, or (height, width), for which position tables and windows are set up; None: that
            of the weights; without weights the paper's. Every model accepts other sizes as well.
        in_chans: channels of the images; None: that of the weights; without weights 3.
        drop_path: rate of stochastic depth; None: 0.
        weights: the tag of published weights ("in1k"), a file in any known layout, a URL, a repository
            ("hf:OWNER/NAME"), a state dict; None: the authors' initialisation. The report of every tensor is
            printed on standard error, and kept as `model.report`.
        accept_license: accept a licence that forbids commercial use; confirmed once per licence.
        which: network to take from a self-supervised checkpoint ("student" or "teacher"); None: the teacher. Such a
            model has no classes unless `num_classes` is given.
        head: a classifier head; None: that of the weights, else "linear", as in the papers.
        head_options: arguments of the head's constructor.
        options: other arguments of the backbone's constructor (window_size, layer_scale, ...).

    Raises:
        ValueError: for an unknown name or option, an invalid value, or weights that do not fit.
    """
    model_options = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path, **options}
    built = build_model(
        "classify", name, model_options, head=head, head_options=head_options, num_classes=num_classes,
        weights=weights, which=which, accept_license=accept_license,
    )  # fmt: skip
    assert isinstance(built, Classifier)
    return built


def create_detector(
    name: str,
    *,
    head: str | None = None,
    num_classes: int | None = None,
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    head_options: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    backbone_weights: Weights | None = None,
    accept_license: bool = False,
    **options: Any,
) -> Detector:
    """Build a detector by name.

    Args:
        name: a backbone, one of `list_models()`, an alias, or NAME.TAG with the published weights TAG.
        head: one of `heads_of("detect")`: "retinanet" (boxes), "mask_rcnn" or "cascade" (boxes and masks), ...; None:
            that of the weights if they name it, else "mask_rcnn".
        num_classes: classes of the head, without a background class; None: that of the weights; without weights the
            80 of COCO. If it differs from the weights, the class scores are initialised anew.
        image_size, in_chans, drop_path, options: as in `create_backbone`.
        head_options: other arguments of the head's constructor (score_threshold, max_detections, ...).
        weights: weights of a whole detector: a tag ("coco_mask_rcnn"), a file in the layout of this package or of
            mmdetection, a URL, a state dict; None: the authors' initialisation. The report on every tensor is kept as
            `detector.report`, and printed on standard error if a tensor was dropped or newly initialised.
        backbone_weights: classifier weights for the backbone: a tag ("in1k"), a file, a state dict.
        accept_license: accept a licence that forbids commercial use; confirmed once per licence.

    Raises:
        ValueError: for an unknown name or option, an invalid value, or weights that do not fit.
    """
    model_options = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path, **options}
    built = build_model(
        "detect", name, model_options, head=head, head_options=head_options, num_classes=num_classes,
        weights=weights, backbone_weights=backbone_weights, accept_license=accept_license,
    )  # fmt: skip
    assert isinstance(built, Detector)
    return built


def create_segmenter(
    name: str,
    *,
    head: str | None = None,
    num_classes: int | None = None,
    weights: Weights | None = None,
    backbone_weights: Weights | None = None,
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    head_options: Mapping[str, Any] | None = None,
    accept_license: bool = False,
    **options: Any,
) -> Segmenter:
    """Build a segmenter by name.

    Args:
        name: a backbone, one of `list_models()`, an alias, or NAME.TAG with the published weights TAG.
        head: one of `heads_of("segment")`: "semantic_fpn" or "upernet"; None: that of the weights if they are
            published with one, else "upernet".
        num_classes: classes of the head; None: that of the weights; without weights the 150 of ADE20K. If it differs
            from the weights, the class scores are initialised anew.
        weights: weights of a whole segmenter: a tag ("ade20k_upernet"), a file in the layout of this package or of
            mmsegmentation, a URL, a state dict; None: the authors' initialisation. The report on every tensor is kept
            as `segmenter.report`, and printed on standard error if a tensor was dropped or newly initialised.
        backbone_weights: classifier weights for the backbone: a tag ("in1k"), a file, a state dict.
        image_size, in_chans, drop_path, options: as in `create_backbone`.
        head_options: other arguments of the head's constructor (auxiliary, average, width, dropout, ...). An
            auxiliary head is built if its loss has a weight (`{"auxiliary": 0.4}`), or if the weights include one and
            it is not disabled (`{"auxiliary": 0}`).
        accept_license: accept a licence that forbids commercial use; confirmed once per licence.

    Raises:
        ValueError: for an unknown name or option, an invalid value, or weights that do not fit.
    """
    model_options = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path, **options}
    built = build_model(
        "segment", name, model_options, head=head, head_options=head_options, num_classes=num_classes,
        weights=weights, backbone_weights=backbone_weights, accept_license=accept_license,
    )  # fmt: skip
    assert isinstance(built, Segmenter)
    return built


def build_model(
    kind: str,
    name: str,
    options: Mapping[str, Any],
    *,
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    weights: Weights | convert.ResolvedWeights | None = None,
    backbone_weights: Weights | None = None,
    which: str | None = None,
    accept_license: bool = False,
) -> Model:
    """Build a model of any kind by name.

    Args:
        kind: "classify", "detect" or "segment".
        name: a backbone, an alias, or NAME.TAG.
        options: arguments of the backbone's constructor; None means not given.
        head, head_options, num_classes, weights, backbone_weights, accept_license: as in `create_detector`.

    Raises:
        ValueError: for an unknown name or option, an invalid value, or weights that do not fit.
    """
    make = MODELS[kind]
    name, dot, tag = name.partition(".")
    name = resolve(name)
    if dot and weights is not None:
        raise ValueError(f"Weights are named once: {name}.{tag}, or weights=...; got both.")
    weights = tag if dot else weights
    options = {key: value for key, value in options.items() if value is not None}
    state: State | None = None
    known: dict[str, Any] = {}  # arguments of the model that the weights come from
    if weights is not None:
        resolved = convert.find(weights, model=name, accept_license=accept_license)
        head = _head_of(resolved, make, head)
        state = convert.state_of(resolved, which)
        known = tuples(resolved.model[1]) if resolved.model and resolve(resolved.model[0]) == name else {}
    head = head or make.default_head
    row = pick(heads_of(make.kind), head, make.head_noun)
    held = _head_states(state, make, name, head) if state else []
    recorded = known.pop("num_classes", None)
    classes = next((n for part in held if (n := row.classes_in(part)) is not None), recorded)
    if num_classes is None:
        num_classes = make.default_classes if classes is None else classes
        if classes is None and kind == "classify" and state is not None and state.projection:
            num_classes = 0  # self-supervised
    implied = {key: value for part in held for key, value in row.options_in(part).items()}
    given = head_options or {}
    for key in row.fixed_options:
        if key in implied and given.get(key, implied[key]) != implied[key]:
            raise ValueError(
                f"{state.source if state else weights} holds a {head} with {key}={implied[key]}; got"
                f" {key}={given[key]}. Leave it out of head_options, or take other weights."
            )
    head_options = {**implied, **known.pop("head_options", {}), **given}
    takes = [p for p in inspect.signature(row).parameters if p not in FIXED]
    check_options(head, head_options, takes)
    model = make.build(
        name,
        {**known, **options},
        head=head,
        head_options=head_options,
        num_classes=num_classes,
        fill=partial(load_backbone, name=name, source=backbone_weights, accept_license=accept_license)
        if backbone_weights is not None
        else None,
    )
    if state is None:
        return model
    model.set_input(resolved.preprocess)
    model.report = report = load_weights(
        model, state, fresh=row.fresh if classes not in (None, num_classes) else (), resolved=resolved
    )
    foreign = kind == "classify" and resolved.header is None
    shown = foreign or report.resized or report.dropped or report.missing
    names = class_names(resolved, make, report.layout, num_classes if classes == num_classes else 0)
    model.class_names = names if len(names) == num_classes else ()
    report.classes = model.about_classes()
    if shown or report.classes:
        print(report, file=sys.stderr)
    return model


def load_weights(
    model: Model,
    source: Weights | State,
    *,
    fresh: Sequence[str] = (),
    resolved: convert.ResolvedWeights | None = None,
) -> Report:
    """Load weights of any known layout into a model of the same kind and head.

    Args:
        source: a source for `read.load_into`.
        fresh: patterns of head tensors, relative to the head, that may keep their initialisation.
        resolved: metadata of the weights.

    Returns:
        The report on every tensor.

    Raises:
        BadFile: if the file is damaged or does not fit; the tensors are named.
    """
    layouts = model.layouts_of(family_of(model), model.head_name)
    allow = model.unused()
    source = source if isinstance(source, State) else read_state(source)
    if model.kind != "classify" and not any(".backbone." in f".{key}" for key in source.tensors):
        allow += ["backbone.*", "pyramid.*"]
        print(
            f"{source.source} holds no backbone: the backbone of the {model.noun} is unchanged.",
            file=sys.stderr,
        )
    if resolved is not None and resolved.row is not None and resolved.row.task == "embed":
        allow.append("head.*")
    if isinstance(model.head, Head):
        own = model.head.state_dict()
        allow += [f"head.{p}" for p in model.head.optional if not fnmatch.filter(own, p)]
    allow += [f"{part}.{pattern}" for part in ("head", "head_dist") for pattern in fresh]
    return load_into(model, source, layouts=layouts, allow=allow)


def class_names(
    resolved: convert.ResolvedWeights,
    make: type[Model] = Classifier,
    layout: str = "",
    num_classes: int = 0,
) -> tuple[str, ...]:
    """Class names of weights for models of type `make`, in `layout`; () if unknown."""
    recorded_names = resolved.header.class_names if resolved.header else ()
    return recorded_names or make.published_class_names(resolved, layout, num_classes)


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options after a JSON round trip, with lists converted back to the tuples of the constructors."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _head_of(resolved: convert.ResolvedWeights, make: type[Model], head: str | None) -> str | None:
    """The head named in the header of the weights, checked against `head`; without a header, `head`.

    Raises:
        ValueError: if the weights are of another kind of model, or of another head.
    """
    record = resolved.header or resolved.row
    if record is None:
        return head
    where = resolved.row.name if resolved.row else resolved.where
    kind = "classify" if record.task == "embed" else record.task
    if kind != make.kind:
        raise ValueError(
            f"{where} holds a model for the task {record.task!r}; a {make.noun} needs {make.kind!r}."
        )
    held = record.head or make.default_head
    if head is not None and head != held:
        raise ValueError(f"{where} holds the head {held!r}; got head={head!r}.")
    return held


def _head_states(state: State, make: type[Model], name: str, head: str) -> list[dict[str, Tensor]]:
    """Tensors of the head in a state dict, relative to the head: in our layout, and from each known layout."""
    layouts = make.layouts_of(family(name), head)
    tensors = make.beside_backbone(stripped(state.tensors)[0])
    named = [tensors, *(layout.to_ours(tensors) for layout in layouts.values())]
    return [{k.removeprefix("head."): v for k, v in part.items() if k.startswith("head.")} for part in named]
