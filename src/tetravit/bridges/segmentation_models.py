"""Every backbone as an encoder of segmentation_models_pytorch, named tetravit_NAME.

`import tetravit.bridges.segmentation_models`, then `smp.Unet("tetravit_gcvit_tiny", encoder_weights=None)`;
`unet.encoder.load("in1k")` brings published weights.
"""

try:
    import segmentation_models_pytorch  # noqa: F401
except ImportError:
    raise ImportError(
        "tetravit.bridges.segmentation_models needs segmentation_models_pytorch:"
        " pip install 'tetravit[segmentation-models]'."
    ) from None

from typing import Any

from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from tetravit.models import create_backbone, list_models
from tetravit.models.pretrained import load_backbone

PREFIX = "tetravit_"


class Encoder(nn.Module, EncoderMixin):
    """Images -> [images, empty map at stride 2, maps at strides 4, 8, 16, 32], truncated to `depth`.

    Args:
        name: of `tetravit.list_models()`.
        depth: number of maps after the images, 3 to 5.
        options: of the backbone.

    Raises:
        ValueError: for another depth, or an output stride other than 32.
    """

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32, **options: Any) -> None:
        nn.Module.__init__(self)
        if not 3 <= depth <= 5:
            raise ValueError(f"encoder_depth is 3, 4 or 5 for {PREFIX}{name}; got {depth}.")
        if output_stride != 32:
            raise ValueError(f"{PREFIX}{name} has an output stride of 32; got {output_stride}.")
        self.name, self.options = name, options
        self.body = create_backbone(name, task="segment", **options)
        self._depth, self._in_channels, self._output_stride = depth, 3, 32
        self._out_channels = [3, 0, *self.body.channels]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Rebuild the stem for another number of channels.

        Raises:
            ValueError: for pretrained weights with another number.
        """
        if in_channels == 3:
            return
        if pretrained:
            raise ValueError(
                f"The weights are for 3 channels; got in_channels={in_channels}. Use encoder_weights=None."
            )
        self.body = create_backbone(self.name, task="segment", in_chans=in_channels, **self.options)
        self._in_channels, self._out_channels[0] = in_channels, in_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, Hi, Wi), sides multiples of 32 -> `depth` + 1 tensors, shallow to deep."""
        nothing = x.new_zeros(len(x), 0, x.shape[2] // 2, x.shape[3] // 2)
        return [x, nothing, *self.body(x)][: self._depth + 1]

    def load(self, weights: Any, *, accept_license: bool = False) -> "Encoder":
        """Put a classifier's weights, a tag such as "in1k" or a file, into the backbone."""
        load_backbone(self.body.backbone, name=self.name, source=weights, accept_license=accept_license)
        return self


def _row(name: str) -> dict[str, Any]:
    return {"encoder": Encoder, "params": {"name": name}, "pretrained_settings": {}}


for _name in list_models():
    encoders[PREFIX + _name] = _row(_name)
