"""XCiT, ConViT, GC ViT and Twins in PyTorch: all sizes and tasks, at any image size."""

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tetravit.api import evaluate as evaluate
    from tetravit.api import explain as explain
    from tetravit.api import predict as predict
    from tetravit.api import train as train
    from tetravit.backbones import Backbone as Backbone
    from tetravit.exports.export import export as export
    from tetravit.exports.verify import verify_export as verify_export
    from tetravit.layers.feature_extractor import create_feature_extractor as create_feature_extractor
    from tetravit.models import Classifier as Classifier
    from tetravit.models import Detector as Detector
    from tetravit.models import Segmenter as Segmenter
    from tetravit.models import create_backbone as create_backbone
    from tetravit.models import create_detector as create_detector
    from tetravit.models import create_model as create_model
    from tetravit.models import create_segmenter as create_segmenter
    from tetravit.models import list_models as list_models
    from tetravit.models.load import load as load
    from tetravit.recipe import Recipe as Recipe
    from tetravit.runtimes.optimize import optimize as optimize
    from tetravit.structures import AttentionMap as AttentionMap
    from tetravit.structures import Batch as Batch
    from tetravit.structures import Detections as Detections
    from tetravit.structures import Preprocess as Preprocess
    from tetravit.structures import Sample as Sample
    from tetravit.structures import Target as Target

_HOMES = {
    "AttentionMap": "tetravit.structures",
    "Backbone": "tetravit.backbones",
    "Batch": "tetravit.structures",
    "Classifier": "tetravit.models",
    "Detections": "tetravit.structures",
    "Detector": "tetravit.models",
    "Preprocess": "tetravit.structures",
    "Recipe": "tetravit.recipe",
    "Sample": "tetravit.structures",
    "Segmenter": "tetravit.models",
    "Target": "tetravit.structures",
    "create_backbone": "tetravit.models",
    "create_detector": "tetravit.models",
    "create_feature_extractor": "tetravit.layers.feature_extractor",
    "create_model": "tetravit.models",
    "create_segmenter": "tetravit.models",
    "evaluate": "tetravit.api",
    "explain": "tetravit.api",
    "export": "tetravit.exports.export",
    "list_models": "tetravit.models",
    "load": "tetravit.models.load",
    "optimize": "tetravit.runtimes.optimize",
    "predict": "tetravit.api",
    "train": "tetravit.api",
    "verify_export": "tetravit.exports.verify",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import tetravit` does not import torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tetravit")
    if name not in _HOMES:
        raise AttributeError(f"module 'tetravit' has no attribute {name!r}")
    with _no_collection():
        value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: during `import torch` it takes about a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
