"""A backbone with its adapter: images -> four maps at strides 4, 8, 16, 32, for detectors and segmenters."""

from collections import OrderedDict
from typing import Any, Literal

from torch import Tensor, nn

from tetravit.backbones import VARIANTS, Backbone
from tetravit.heads.pyramid import Pyramid
from tetravit.models.names import Size, build_backbone, resolve
from tetravit.models.portable import Portable


class PyramidBackbone(Portable):
    """A backbone with its authors' adapter. `backbone.feature_maps` returns the native maps, this the pyramid.

    channels, strides: of the four maps. For sides divisible by 32 each map has exactly Hi / stride rows.
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
        """Alias of `forward`, with the name used by all backbones."""
        return self(images)

    def as_pyramid(self, out_channels: int | None = 256) -> "NamedMaps":
        """In the form of torchvision's detectors: an ordered dict of maps, with an FPN, and `out_channels`.

        out_channels: of the FPN, which adds a coarser map "pool"; None: the four maps without an FPN.
        """
        return NamedMaps(self, out_channels)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"map_{stride}" for stride in self.strides)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


class NamedMaps(nn.Module):
    """Images -> {"0": map at stride 4, ..., "3": at stride 32, "pool": at 64}, for torchvision's detectors.

    out_channels: of every map; without an FPN a list.
    """

    def __init__(self, backbone: PyramidBackbone, out_channels: int | None) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.body = backbone
        self.fpn = None
        self.out_channels: int | list[int] = list(backbone.channels)
        if out_channels is not None:
            self.fpn = FeaturePyramidNetwork(list(backbone.channels), out_channels, LastLevelMaxPool())
            self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, in_chans, Hi, Wi) -> maps by name, shallow to deep."""
        maps = OrderedDict((str(i), level) for i, level in enumerate(self.body(images)))
        named: dict[str, Tensor] = maps if self.fpn is None else self.fpn(maps)
        return named


def create_backbone(
    name: str,
    *,
    task: Literal["detect", "segment"] = "detect",
    image_size: Size | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    **options: Any,
) -> PyramidBackbone:
    """Build a backbone with its authors' adapter: four maps at strides 4, 8, 16, 32.

    Args:
        name: one of `list_models()`, or an alias.
        task: whether to follow the authors' detection or segmentation release, where they differ.
        image_size, in_chans, drop_path, options: as in `create_model`.

    Raises:
        ValueError: for an unknown name or option, or an invalid value.
    """
    given = {"image_size": image_size, "in_chans": in_chans, "drop_path": drop_path}
    released = VARIANTS[resolve(name)].func.task_options.get(task, {})
    options = {**released, **options, **{k: v for k, v in given.items() if v is not None}}
    return PyramidBackbone(build_backbone(name, **options))
