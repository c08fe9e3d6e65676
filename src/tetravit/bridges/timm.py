"""Every model in timm's registry as tetravit_NAME, with the interface that timm's tools use.

`import tetravit.bridges.timm`, then `timm.create_model("tetravit_gcvit_tiny", pretrained=True, num_classes=10)`.
State dicts have the names of `tetravit.create_model`, so files are interchangeable. Not supported: torch.jit.script,
torch.fx, dropout inside attention.
"""

try:
    import timm  # noqa: F401
except ImportError:
    raise ImportError("tetravit.bridges.timm needs timm: pip install 'tetravit[timm]'.") from None

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from tetravit.models import create_model, list_models
from tetravit.structures import Preprocess
from tetravit.weights import CHECKPOINTS
from tetravit.weights.base import Checkpoint

PREFIX = "tetravit_"
POOLS = ("avg", "token", "")  # as in timm; "": features without pooling
SMALL_SIDE = 64  # pixels, large enough for every level
# timm's constructor arguments and our names.
RENAMED = {"img_size": "image_size", "drop_path_rate": "drop_path"}


class UnknownArgument(TypeError, ValueError):
    """An unsupported argument. timm's tools expect a TypeError, ours a ValueError."""


class TimmModel(nn.Module):
    """A classifier with timm's interface: images (B, in_chans, Hi, Wi) -> logits (B, K).

    Args:
        name: of `tetravit.list_models()`.
        weights: as in `create_model`; None: random.
        num_classes: 0: the output is the embedding.
        in_chans: channels of an image.
        global_pool: "": features without pooling, if there are no classes.
        drop_rate: dropout before the head.
        device, dtype: of the parameters; None: torch's own.
        options: img_size, drop_path_rate, accept_license and options of the backbone.

    Raises:
        ValueError: as `tetravit.create_model`; `UnknownArgument` for an unsupported option.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: Any = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        options = {RENAMED.get(key, key): value for key, value in options.items()}
        try:
            with torch.device(device) if device is not None else nullcontext():
                model = create_model(
                    name, num_classes=num_classes, in_chans=in_chans, weights=weights, **options
                )
        except ValueError as error:
            if " has no option " in str(error):
                raise UnknownArgument(str(error)) from None
            raise
        model.to(device=device, dtype=dtype)
        self._classifier = (model,)  # in a tuple, so that its modules are registered only below
        self.backbone = model.backbone
        self.head, self.head_dist = model.head, model.head_dist
        self.num_classes, self.in_chans, self.drop_rate = model.num_classes, in_chans, drop_rate
        self.global_pool = _pool(global_pool)
        self.num_features = self.head_hidden_size = self.embed_dim = model.backbone.embed_dim
        channels, strides = model.backbone.channels, model.backbone.strides
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"backbone.level{i}"}
            for i, (width, stride) in enumerate(zip(channels, strides, strict=True))
        ]
        self._end: int | None = None  # last level of a pruned model

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> normed features: maps (B, C, H, W) of pyramids, tokens (B, N, C) of other families.

        A model pruned to a level returns the map of that level.
        """
        if self._end is not None:
            return self.backbone.feature_maps(x)[self._end]
        if self.backbone.num_prefix:
            return self.backbone.forward_features(x)
        return self.backbone.patch_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features of `forward_features` -> logits, or embeddings with `pre_logits`."""
        if self.global_pool == "":
            return x
        if self._end is not None:
            return self._drop(x.mean(dim=(2, 3))) if pre_logits else self._logits(x.mean(dim=(2, 3)))
        tokens = x.flatten(2).mT if x.ndim == 4 else x
        if pre_logits:
            return self._drop(self.backbone.pool(tokens))
        if self.head_dist is not None:
            return self._logits(tokens[:, 0], tokens[:, 1])
        return self._logits(self.backbone.pool(tokens))

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits; without classes embeddings, without pooling features."""
        if self.global_pool == "" or self._end is not None:
            return self.forward_head(self.forward_features(x))
        if self.head_dist is not None:
            return self._logits(*self.backbone.embeddings(x))
        return self._logits(self.backbone(x))

    def _logits(self, *embeddings: Tensor) -> Tensor:
        """The embedding of each head -> the mean of their logits."""
        logits = self.head(self._drop(embeddings[0]))
        if self.head_dist is None:
            return logits
        return (logits + self.head_dist(self._drop(embeddings[1]))) / 2

    def _drop(self, embedding: Tensor) -> Tensor:
        return F.dropout(embedding, self.drop_rate, self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Images -> the maps of the levels `indices`, preceded by the features unless `intermediates_only`.

        Args:
            x: images (B, in_chans, Hi, Wi).
            indices: levels of `feature_info`; an int: the last n levels; None: all.
            norm: use the normed features as last level.
            stop_early: no effect: levels are computed together.
            output_fmt: NCHW, or NLC for tokens (B, H * W, C).
            intermediates_only: omit the features.

        Raises:
            ValueError: for another format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is NCHW or NLC; got {output_fmt!r}.")
        taken = self._taken(indices)
        maps = self.backbone.feature_maps(x)
        if norm and len(maps) - 1 in taken:
            maps[-1] = self.backbone.patch_features(x)
        chosen = [maps[i] for i in taken]
        if output_fmt == "NLC":
            chosen = [level.flatten(2).mT for level in chosen]
        return chosen if intermediates_only else (self.forward_features(x), chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Prune a model to the deepest of the given levels; returns the levels.

        Later layers stay in the state dict, without gradients: DDP requires a gradient for every parameter.

        Args:
            indices: levels, as in `forward_intermediates`.
            prune_norm: also remove the norm.
            prune_head: drop the head.
        """
        taken, last = self._taken(indices), len(self.feature_info) - 1
        if prune_head:
            self.reset_classifier(0)
        if prune_norm or max(taken) < last:
            self._end = max(taken)
            self.num_features = self.head_hidden_size = self.backbone.channels[self._end]
            self._freeze_beyond(self._end)
        return taken

    def _freeze_beyond(self, level: int) -> None:
        """Freeze the backbone parameters on which the map of a level does not depend."""
        # On the meta device: the graph of a small image, without values.
        twin = copy.deepcopy(self.backbone).to("meta").train(False)
        with torch.enable_grad():
            images = torch.empty(1, self.in_chans, SMALL_SIDE, SMALL_SIDE, device="meta")
            total = twin.feature_maps(images)[level].sum()
        named = {name: p for name, p in twin.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is None:
                self.backbone.get_parameter(name).requires_grad_(False)

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """timm's indices -> level numbers."""
        count = len(self.feature_info)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            indices = range(max(count - indices, 0), count)
        if any(not -count <= i < count for i in indices):
            raise ValueError(f"There are {count} levels, 0 to {count - 1}; got {list(indices)}.")
        return [i % count for i in indices]

    def get_classifier(self) -> nn.Module:
        """The head; both heads of a model with a distillation token."""
        return self.head if self.head_dist is None else nn.ModuleList([self.head, self.head_dist])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head for another number of classes; 0: no head."""
        if global_pool is not None:
            self.global_pool = _pool(global_pool)
        (model,) = self._classifier
        model.reset_head(num_classes)
        self.num_classes, self.head, self.head_dist = num_classes, model.head, model.head_dist
        if self._end is not None and num_classes:
            like = next(self.backbone.parameters())
            self.head, self.head_dist = nn.Linear(self.num_features, num_classes).to(like), None
        self.train(self.training)  # set the mode of the new head

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Patterns from parameter names to depth, for layer-wise learning rates; `coarse` has no effect."""
        names = {id(p): name for name, p in self.named_parameters()}
        groups = self.backbone.stages()
        depth = {
            names[id(p)]: i for i, group in enumerate(groups) for module in group for p in module.parameters()
        }
        return lambda name: depth.get(name, 0 if name in self.no_weight_decay() else len(groups))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def __prepare_scriptable__(self) -> "TimmModel":
        self.backbone.__prepare_scriptable__()
        return self


def _pool(name: str) -> str:
    if name not in POOLS:
        raise ValueError(f"global_pool is one of {', '.join(map(repr, POOLS))}; got {name!r}.")
    return name


def _configuration(name: str, row: Checkpoint | None) -> dict[str, Any]:
    """timm's pretrained_cfg of a model with the weights `row`, or without weights."""
    input = (row.preprocess if row else None) or Preprocess()
    stem = _stem(name)
    side = input.size if isinstance(input.size, int) else max(input.size)
    table: dict[str, Any] = {
        "num_classes": row.num_classes if row else 1000,
        "input_size": (3, side, side),
        "pool_size": (side // _stride(name),) * 2,
        "crop_pct": input.crop,
        "interpolation": input.interpolation,
        "mean": input.mean,
        "std": input.std,
        "first_conv": stem,
        "classifier": ("head", "head_dist") if "distilled" in name else "head",
    }
    if row:
        table |= {
            "url": row.sources[0].url,
            "license": row.licence,
            "origin_url": row.published_in,
            "custom_load": True,
        }
    return table


def _stem(name: str) -> str:
    family = name.partition("_")[0]
    inner = {"xcit": "patch_embed.0.0", "gcvit": "patch_embed.proj", "twins": "patch_embeds.0.proj"}
    return f"backbone.{inner.get(family, 'patch_embed')}"


def _stride(name: str) -> int:
    if name.startswith(("gcvit", "twins")):
        return 32
    return 8 if "_p8" in name else 16


def _entry(name: str) -> Callable[..., nn.Module]:
    """The entry function that timm calls to build the model `name`."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        configuration = kwargs.get("pretrained_cfg")
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        weights = None
        if pretrained:
            tag = configuration if isinstance(configuration, str) else getattr(configuration, "tag", None)
            file = overlay.get("file") or getattr(configuration, "file", None)
            weights = file or tag or _first_tag(name)
        if kwargs.get("features_only"):
            kwargs.setdefault("out_indices", 4)
        return build_model_with_cfg(
            partial(TimmModel, name, weights=weights),
            PREFIX + name,
            False,  # TimmModel loads the weights: their layouts and hashes are in the catalogue
            feature_cfg={"feature_cls": "getter"},
            **kwargs,
        )

    build.__name__ = build.__qualname__ = PREFIX + name
    build.__module__ = __name__
    build.__doc__ = f"tetravit's {name}."
    return build


def _rows(name: str) -> dict[str, Checkpoint]:
    return {row.tag: row for row in CHECKPOINTS.values() if row.model == name and row.task == "classify"}


def _first_tag(name: str) -> str:
    rows = _rows(name)
    if not rows:
        raise ValueError(f"No published weights for {name}: pretrained=False, or a file by checkpoint_path.")
    return next(iter(rows))


def _configurations() -> dict[str, dict[str, Any]]:
    """timm's table: one entry per model and tag, or without a tag if no weights are published."""
    table: dict[str, dict[str, Any]] = {}
    for name in list_models():
        rows = _rows(name)
        table |= {f"{PREFIX}{name}.{tag}": _configuration(name, row) for tag, row in rows.items()}
        if not rows:
            table[PREFIX + name] = _configuration(name, None)
    return table


default_cfgs = generate_default_cfgs(_configurations())
for _name in list_models():
    setattr(sys.modules[__name__], PREFIX + _name, register_model(_entry(_name)))
