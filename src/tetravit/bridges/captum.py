"""Class activation maps of a classifier in captum's layout: (B, C, H, W).

captum averages over every dimension from the third on, which is silently wrong for tokens (B, N, C). Needs the extra
`captum`:

    view = WithMaps(model)
    cam = LayerGradCam(view, view.maps).attribute(images, target=2)  # (B, 1, H, W)

Methods without a layer, such as IntegratedGradients, need no adapter.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tetravit.bridges.grad_cam import cam_target
from tetravit.models.classifier import Classifier


class WithMaps(nn.Module):
    """A classifier with a layer for activation maps; outputs and gradients are unchanged.

    maps: the layer. Its output is that of `backbone.cam_layer` as (B, C, H, W), without prefix tokens.

    Args:
        model: of any family.

    Raises:
        ValueError: for another kind of model; use `tetravit.explain`.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        cam_target(model)  # checks the kind
        self.model, self.maps = model, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, Hi, Wi) -> logits (B, K)."""
        layer, reshape = cam_target(self.model, (images.shape[2], images.shape[3]))

        def through_maps(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            count = output[0].numel()
            places = reshape(torch.arange(count, device=output.device).view_as(output[0])[None]).flatten()
            maps = self.maps(reshape(output))
            # The maps are written back into the output of the layer; prefix tokens are unchanged.
            return output.flatten(1).index_copy(1, places, maps.flatten(1)).view_as(output)

        handle = layer.register_forward_hook(through_maps)
        try:
            logits: Tensor = self.model(images)
        finally:
            handle.remove()
        return logits
