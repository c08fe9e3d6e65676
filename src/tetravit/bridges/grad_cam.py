"""Target layer and reshape transform for pytorch-grad-cam and captum, which require maps (B, C, H, W).

`target = cam_target(model)`, then `GradCAM(model, [target.layer], reshape_transform=target.reshape)`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from tetravit.explainers.parts.gradients import as_map
from tetravit.models.classifier import Classifier


class CamTarget(NamedTuple):
    """layer: the deepest usable one. reshape: its output -> (B, C, H, W), without prefix tokens."""

    layer: nn.Module
    reshape: Callable[[Tensor], Tensor]


def cam_target(model: Classifier, size: tuple[int, int] | None = None) -> CamTarget:
    """The layer of a classifier for class activation maps.

    Args:
        model: of any family.
        size: height and width of the images in pixels; None: the input size of the model.

    Raises:
        ValueError: for another kind of model; use `tetravit.explain`.
    """
    if not isinstance(model, Classifier):
        raise ValueError(
            f"cam_target is for classifiers; got a {type(model).__name__}. tetravit.explain(model, image,"
            ' method="gradcam") explains segmenters and detectors.'
        )
    name = model.backbone.cam_layer
    sides = size or model.input.sides

    def reshape(outputs: Tensor) -> Tensor:
        return as_map(model.backbone, name, outputs, sides)[0]

    return CamTarget(model.backbone.get_submodule(name), reshape)
