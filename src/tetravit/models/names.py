"""Model names and their backbones."""

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tetravit.backbones import ALIASES, VARIANTS, Backbone
from tetravit.registry import pick, suggestion

Size = int | tuple[int, int]

# timm's arguments of create_model, and their equivalents here.
TIMM = {
    "pretrained": 'weights="in1k" loads published weights',
    "features_only": "create_backbone(NAME).feature_maps(images) gives the maps",
    "out_indices": "create_backbone(NAME).feature_maps(images) gives every level; choose among them",
    "drop_path_rate": "drop_path=0.1 sets stochastic depth",
    "img_size": "image_size=384, or image_size=(224, 320)",
    "checkpoint_path": 'weights="FILE" loads a file',
    "global_pool": "num_classes=0 gives the pooled embedding, forward_features(images) the tokens",
}


def resolve(name: str) -> str:
    """Our name of a model; aliases (the authors' names) are resolved.

    Raises:
        ValueError: for an unknown model; the nearest name is suggested.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        pick({**VARIANTS, **ALIASES}, name, "model")
    return name


def family(name: str) -> str:
    """The family file of a model: "xcit", "convit", "gcvit", "twins", "deit"."""
    return pick(VARIANTS, resolve(name), "model").func.__module__.rsplit(".", 1)[-1]


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models, or of those that match a shell pattern ("gcvit_*", "*_p8")."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def build_backbone(name: str, **options: Any) -> Backbone:
    """The backbone by name; `options` are arguments of its constructor.

    Raises:
        ValueError: for an unknown name or option, or an invalid value.
    """
    row = VARIANTS[resolve(name)]
    check_options(name, options, [p for p in inspect.signature(row.func).parameters if p != "self"])
    if options.get("in_chans", 1) < 1:
        raise ValueError(f"in_chans is 1 or more; got {options['in_chans']!r}.")
    if "image_size" in options:
        options["image_size"] = check_size(options["image_size"])
    return row(**options)


def check_options(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises: ValueError for an option outside `known`; `name`: the called function."""
    for option in options:
        if option not in known and option in TIMM:
            raise ValueError(f"{name} has no option {option!r}, which is timm's: {TIMM[option]}.")
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}.{suggestion(option, known)}")


def check_size(size: Any) -> Size:
    """A side in pixels or (height, width), as given.

    Raises:
        ValueError: if it is neither, or below 32 pixels.
    """
    sides: Sequence[Any] = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 32 for s in sides):
        raise ValueError(f"image_size is a side in pixels from 32 up, or (height, width); got {size!r}.")
    return size if isinstance(size, int) else (sides[0], sides[1])
