"""Models, configurations and an image processor for Hugging Face transformers.

`import tetravit.bridges.transformers` registers them: `AutoModel`, `AutoBackbone`, `AutoModelForImageClassification`,
`AutoModelForObjectDetection`, `AutoModelForSemanticSegmentation` and `AutoImageProcessor` then load files from
`save_pretrained` or `tetravit weights push`. Tensors have the names of `tetravit.save`.
`AutoBackbone.from_pretrained` of transformers 5 accepts only repositories of the hub; for a folder use
`TetravitBackbone.from_pretrained`.

Shapes: B images, C channels, (Hi, Wi) pixels, K classes, M objects, P detections per image with padding.
"""

try:
    import transformers  # noqa: F401
except ImportError:
    raise ImportError(
        "tetravit.bridges.transformers needs transformers: pip install 'tetravit[transformers]'."
    ) from None

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import ModelOutput

from tetravit.bridges.parts.hf_processor import TetravitImageProcessor
from tetravit.models import create_backbone, create_model
from tetravit.models.base import Model
from tetravit.models.create import build_model, tuples
from tetravit.models.load import load
from tetravit.structures import Batch, Preprocess, Target
from tetravit.weights.hub import transformers_config

LEVELS = 4  # of every backbone, at strides 4, 8, 16, 32


class TetravitConfig(BackboneConfigMixin, PretrainedConfig):
    """The arguments that build a model: name, head and options.

    architecture: a name of `tetravit.list_models()`. head: of the task; None: the default. head_options,
    backbone_options: arguments of their constructors. preprocess: fields of `Preprocess`. num_labels, id2label,
    out_indices, out_features: as in transformers.
    """

    model_type = "tetravit"

    def __init__(
        self,
        architecture: str = "xcit_nano_12_p16",
        head: str | None = None,
        head_options: Mapping[str, Any] | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        preprocess: Mapping[str, Any] | None = None,
        num_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        out_features: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.architecture, self.head, self.num_channels = architecture, head, num_channels
        self.head_options, self.backbone_options = dict(head_options or {}), dict(backbone_options or {})
        self.preprocess = dict(preprocess or {})
        super().__init__(**kwargs)
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, LEVELS + 1))]
        chosen = None if out_indices is None else list(out_indices)
        self.set_output_features_output_indices(
            out_features=None if out_features is None else list(out_features), out_indices=chosen
        )

    @classmethod
    def of(cls, model: Model) -> "TetravitConfig":
        """The configuration of a model."""
        return cls(**transformers_config(model.header()))

    def _options(self) -> dict[str, Any]:
        return {**tuples(self.backbone_options), "in_chans": self.num_channels}

    def build(self, kind: str) -> Model:
        """A model of that kind, "classify", "detect" or "segment", without loaded weights."""
        options = self._options()
        head_options = tuples(self.head_options)
        return build_model(
            kind,
            self.architecture,
            options,
            head=self.head,
            head_options=head_options,
            num_classes=self.num_labels,
        )

    @property
    def input(self) -> Preprocess:
        """The preprocessing of its images."""
        return Preprocess(**tuples(self.preprocess))


class TetravitPreTrainedModel(PreTrainedModel):
    """Base of the models: the modules of our model under the same names."""

    config_class = TetravitConfig
    config: TetravitConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block", "LocalBlock", "ClassBlock", "Level"]  # noqa: RUF012
    kind = ""

    def __init__(self, config: TetravitConfig, model: Model | None = None) -> None:
        super().__init__(config)
        with torch.device("cpu"):  # transformers builds on the meta device, without values of buffers
            ours = model if model is not None else self._build(config)
        self._ours = (ours,)  # in a tuple, so that its modules are registered only below
        for name, part in ours.named_children():
            self.add_module(name, part)
        # Buffers that are in no checkpoint: transformers resets them when loading one.
        self._tables = {
            id(part): {
                name: table.clone()
                for name in part._non_persistent_buffers_set
                if (table := getattr(part, name)) is not None
            }
            for part in ours.modules()
        }
        self.post_init()

    def _build(self, config: TetravitConfig) -> nn.Module:
        return config.build(self.kind)

    @classmethod
    def of(cls, source: Any) -> Any:
        """From one of our models, or a source for `tetravit.load`: a weights file, a run folder."""
        model = source if isinstance(source, Model) else load(source)
        if model.kind != cls.kind:
            raise ValueError(f"{cls.__name__} is for kind {cls.kind!r}; the model is of kind {model.kind!r}.")
        return cls(TetravitConfig.of(model), model)

    @property
    def ours(self) -> Any:
        """The model with the interface of this package; the parameters are shared."""
        return self._ours[0]

    def __call__(
        self,
        *args: Any,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """The output of `forward`; a tuple if `return_dict`, or that of the configuration, is False.

        Raises:
            ValueError: if attention or hidden states are requested; they are available elsewhere.
        """
        if output_attentions:
            raise ValueError(
                "output_attentions: the layouts of the families differ; model.ours.backbone.attention(pixel_values)"
                " gives the weights of every layer."
            )
        if isinstance(self, TetravitBackbone):
            inputs["output_hidden_states"] = output_hidden_states
        elif output_hidden_states:
            raise ValueError(
                "output_hidden_states: AutoBackbone gives the maps of the levels, as does"
                " model.ours.feature_maps(pixel_values)."
            )
        output = super().__call__(*args, **inputs)
        plain = self.config.return_dict if return_dict is None else return_dict
        return output if plain or not isinstance(output, ModelOutput) else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        """The first module of the backbone, from pixels to tokens."""
        first: nn.Module = self.ours.backbone.stages()[0][0]
        return first

    def train(self, mode: bool = True) -> Any:
        self.ours.train(mode)
        return super().train(mode)

    def init_weights(self) -> None:
        """No effect: the constructors of the modules, or a checkpoint, set the values."""
        self.tie_weights(recompute_mapping=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Tensors missing in a checkpoint: buffers, a head for other classes, a pyramid."""
        for name, table in self._tables.get(id(module), {}).items():
            getattr(module, name).copy_(table)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel():
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | _BatchNorm) and module.weight is not None:
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)

    def _set_gradient_checkpointing(self, enable: bool = True, **options: Any) -> None:
        self.ours.backbone.set_grad_checkpointing(enable)


class TetravitModel(TetravitPreTrainedModel):
    """Images -> features, without a head: tokens and one embedding per image."""

    kind = "classify"

    def _build(self, config: TetravitConfig) -> nn.Module:
        return create_model(config.architecture, num_classes=0, **config._options())

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """pixel_values: (B, C, Hi, Wi) -> last_hidden_state (B, N, C), pooler_output (B, C)."""
        backbone = self.ours.backbone
        tokens = backbone.forward_features(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=backbone.pool(tokens))


class TetravitForImageClassification(TetravitPreTrainedModel):
    """Images -> logits; with labels also a loss."""

    kind = "classify"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """pixel_values: (B, C, Hi, Wi). labels: (B,) int64, or (B, K) float for multi-label targets.

        `config.problem_type` selects the loss; None: by the labels, and squared error for a single class.
        """
        logits = self.ours(pixel_values)
        loss = None if labels is None else self._loss(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type
        if problem is None and self.config.num_labels == 1:
            problem = "regression"
        if problem == "regression":
            return F.mse_loss(logits.flatten(), labels.to(logits.dtype).flatten())
        if problem == "multi_label_classification" or labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


class TetravitForSemanticSegmentation(TetravitPreTrainedModel):
    """Images -> logits (B, K, h, w) on the grid of the finest map; with labels a loss, in training only the loss."""

    kind = "segment"

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> SemanticSegmenterOutput:
        """pixel_values: (B, C, Hi, Wi). labels: (B, Hi, Wi) integers, 255 for ignored pixels."""
        if labels is None:
            return SemanticSegmenterOutput(logits=self.ours(pixel_values))
        losses = self.ours.loss(pixel_values, labels)
        # In training a second pass would double the cost, and update BatchNorm statistics twice.
        logits = None if self.training else self.ours(pixel_values)
        return SemanticSegmenterOutput(loss=torch.stack(list(losses.values())).sum(), logits=logits)


@dataclass
class DetectionOutput(ModelOutput):
    """Detections, best first; padding, where `valid` is false, last.

    loss, loss_dict: with labels. scores, labels, valid: (B, P). pred_boxes: (B, P, 4), x1 y1 x2 y2 normalized by the
    image's width and height.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    scores: Tensor | None = None
    labels: Tensor | None = None
    pred_boxes: Tensor | None = None
    valid: Tensor | None = None


class TetravitForObjectDetection(TetravitPreTrainedModel):
    """Images -> objects; with labels also a loss."""

    kind = "detect"

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        **_: Any,
    ) -> DetectionOutput:
        """pixel_values: (B, C, Hi, Wi). pixel_mask: (B, Hi, Wi), 1 inside the image, 0 for padding.

        labels: per image "class_labels" (M,) and "boxes" (M, 4), cx cy w h normalized by the image.
        """
        sizes = _sizes(pixel_values, pixel_mask)
        if labels is not None and self.training:
            losses = self.ours.loss(
                Batch(
                    pixel_values,
                    [_target(*x) for x in zip(labels, sizes, strict=True)],
                    torch.as_tensor(sizes),
                )
            )
            return DetectionOutput(loss=torch.stack(list(losses.values())).sum(), loss_dict=losses)
        rows = self.ours.detect(pixel_values, sizes)
        most = max((len(row.scores) for row in rows), default=0)
        scale = torch.as_tensor(sizes, device=pixel_values.device).flip(1).repeat(1, 2)  # (B, 4)
        boxes = [row.boxes / scale[i] for i, row in enumerate(rows)]
        output = DetectionOutput(
            scores=_stacked([row.scores for row in rows], most),
            labels=_stacked([row.labels for row in rows], most),
            pred_boxes=_stacked(boxes, most),
            valid=_stacked([torch.ones_like(row.labels, dtype=torch.bool) for row in rows], most),
        )
        if labels is not None:
            with torch.no_grad():
                targets = [_target(*x) for x in zip(labels, sizes, strict=True)]
                output.loss_dict = self.ours.loss(Batch(pixel_values, targets, torch.as_tensor(sizes)))
            output.loss = torch.stack(list(output.loss_dict.values())).sum()
        return output


class TetravitBackbone(BackboneMixin, TetravitPreTrainedModel):
    """Images -> the maps of selected levels."""

    def __init__(self, config: TetravitConfig) -> None:
        super().__init__(config)
        # For every name in `stage_names`; the stem has the channels of the first level.
        self.num_features = [self.ours.channels[0], *self.ours.channels]

    def _build(self, config: TetravitConfig) -> nn.Module:
        return create_backbone(config.architecture, **config._options())

    @property
    def channels(self) -> list[int]:
        """Channels of the selected maps."""
        return [self.num_features[self.config.stage_names.index(name)] for name in self.out_features]

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BackboneOutput:
        """pixel_values: (B, C, Hi, Wi) -> feature_maps, one per name in `out_features`."""
        maps = self.ours(pixel_values)
        names = self.config.stage_names[1:]
        chosen = tuple(maps[names.index(name)] for name in self.out_features if name != "stem")
        return BackboneOutput(
            feature_maps=chosen, hidden_states=tuple(maps) if output_hidden_states else None
        )


def _sizes(images: Tensor, mask: Tensor | None) -> list[tuple[int, int]]:
    if mask is None:
        return [(images.shape[2], images.shape[3])] * len(images)
    return [(int(m.any(dim=1).sum()), int(m.any(dim=0).sum())) for m in mask.bool()]


def _target(label: Mapping[str, Tensor], size: tuple[int, int]) -> Target:
    """transformers' boxes, normalized cx cy w h -> ours, x1 y1 x2 y2 in pixels."""
    height, width = size
    center, extent = label["boxes"].float().split(2, dim=1)
    corners = torch.cat([center - extent / 2, center + extent / 2], dim=1)
    return Target(corners * corners.new_tensor((width, height, width, height)), label["class_labels"].long())


def _stacked(rows: Sequence[Tensor], most: int) -> Tensor:
    return torch.stack([F.pad(row, (*(0, 0) * (row.ndim - 1), 0, most - len(row))) for row in rows])


AutoConfig.register("tetravit", TetravitConfig, exist_ok=True)
AutoBackbone.register(TetravitConfig, TetravitBackbone, exist_ok=True)
AutoModel.register(TetravitConfig, TetravitModel, exist_ok=True)
AutoModelForImageClassification.register(TetravitConfig, TetravitForImageClassification, exist_ok=True)
AutoModelForObjectDetection.register(TetravitConfig, TetravitForObjectDetection, exist_ok=True)
AutoModelForSemanticSegmentation.register(TetravitConfig, TetravitForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(TetravitConfig, TetravitImageProcessor, exist_ok=True)
