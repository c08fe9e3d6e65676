"""Images -> four maps at strides 4, 8, 16, 32: what detectors and segmentors read."""

from torch import Tensor, nn

from tetravit.backbones.base import Backbone
from tetravit.heads.pyramid import Pyramid


class PyramidBackbone(nn.Module):
    """A backbone with its authors' adapter. `backbone.feature_maps` gives the native maps, this the pyramid.

    channels, strides: of the four maps. At sides that 32 divides each map has exactly Hi / stride rows.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = Pyramid(backbone.channels, backbone.strides, backbone.map_norm)
        self.channels, self.strides = self.pyramid.channels, self.pyramid.strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, in_chans, Hi, Wi) -> four maps (B, C, ~Hi / stride, ~Wi / stride), shallow to deep."""
        return self.pyramid(self.backbone.feature_maps(images))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The same as calling it: the name by which every backbone gives its maps."""
        return self(images)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beyond biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
