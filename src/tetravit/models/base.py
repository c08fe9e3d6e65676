"""The base class of models: backbone, head, constructor arguments, and preprocessing."""

import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from tetravit.backbones.base import Backbone
from tetravit.heads import HEADS, Head
from tetravit.models.portable import Portable
from tetravit.models.pyramid import PyramidBackbone, create_backbone
from tetravit.structures import Kind, Preprocess, for_channels
from tetravit.weights import ADAPTERS, convert
from tetravit.weights.fileformat import Header
from tetravit.weights.layouts import dense_maps
from tetravit.weights.read import Names, Report, family_of

GRAPHS = 32  # compiled graphs per function: GC ViT's windows of 24 tokens divide four maps in up to 15 ways


class Model(Portable):
    """A backbone with a head.

    kind: "classify", "detect" or "segment". default_head, default_classes: used if neither the caller nor the weights
    set them. usual_input: preprocessing of the published models of that kind. name, head_name, options: constructor
    arguments. class_names: one per class, if known. input: preprocessing of the weights, applied by `preprocess`.
    report: report on every tensor of the loaded weights; None: built without weights.
    """

    kind: ClassVar[Kind]
    noun: ClassVar[str]  # "detector"
    head_noun: ClassVar[str]  # "detection head"
    default_head: ClassVar[str]
    default_classes: ClassVar[int]
    usual_input: ClassVar[Preprocess]
    head: nn.Module
    num_classes: int

    def __init__(self, *, name: str, head_name: str, options: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.name, self.head_name, self.options = name, head_name, dict(options or {})
        self.class_names: tuple[str, ...] = ()
        self.thresholds: tuple[float, ...] = ()  # per-class probability thresholds of multi-label models
        self.input = self.usual_input
        self.report: Report | None = None

    @classmethod
    def build(
        cls,
        name: str,
        options: Mapping[str, Any],
        *,
        head: str,
        head_options: Mapping[str, Any],
        num_classes: int,
        fill: Callable[[Backbone], Any] | None = None,
    ) -> Self:
        """Build a model; `fill` loads weights into the backbone before the head is built.

        Raises:
            ValueError: for an invalid option or number of classes.
        """
        raise NotImplementedError

    def set_input(self, input: Preprocess | None) -> None:
        """Set `input` to the preprocessing of the weights, for the backbone's number of channels; None: keep it."""
        self.input = for_channels(input or self.input, self.backbone.in_chans)

    @classmethod
    def layouts_of(cls, family: str, head: str) -> Mapping[str, Names]:
        """Tensor naming of other programs for such a model, besides the layouts of its family."""
        return {}

    @classmethod
    def beside_backbone(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a state dict, in any layout, that may belong to the head."""
        return {name: value for name, value in state.items() if not name.startswith("backbone.")}

    def unused(self) -> list[str]:
        """Patterns of our names missing in weights of such a model, because only other kinds use them."""
        return []

    def header(self, *, recipe: str = "", licence: str = "", source: str = "") -> Header:
        """The header of a weights file, from which `load` rebuilds the model.

        recipe: TOML text of the run that trained the weights. licence, source: of the weights.
        """
        return Header(
            model=self.name,
            options=self.options,
            task=self.kind,
            head=self.head_name,
            num_classes=self.num_classes,
            class_names=self.class_names,
            preprocess=self.input,
            thresholds=self.thresholds,
            recipe=recipe,
            licence=licence,
            source=source,
        )

    def about_classes(self) -> str:
        """The meaning of class indices outside this package; "": none."""
        return ""

    @classmethod
    def published_class_names(
        cls, resolved: convert.ResolvedWeights, layout: str, num_classes: int
    ) -> tuple[str, ...]:
        """Class names of published weights in `layout`; () if unknown."""
        return ()

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "task": self.kind,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "preprocess": asdict(self.input),
            **({"thresholds": list(self.thresholds)} if self.thresholds else {}),
        }

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits",) if self.num_classes else ("embedding",)

    def preprocess(self, image: Any) -> Tensor:
        """Preprocess a picture (path, Pillow image, array, tensor) -> float (3, Hi, Wi).

        A list of pictures gives a batch (B, 3, Hi, Wi).

        Raises:
            ValueError: if a picture cannot be read or is of an unsupported type, or sizes in a list differ.
        """
        from tetravit.data.preprocess import preprocess  # imported only when a picture is read

        if not isinstance(image, list | tuple):
            return preprocess(image, self.input)
        images = [preprocess(one, self.input) for one in image]
        sizes = sorted({tuple(x.shape[1:]) for x in images})
        if len(sizes) != 1:
            given = f"sizes {sizes[0]} and {sizes[1]}" if sizes else "an empty list"
            raise ValueError(f"A batch takes images of one size after preprocessing; got {given}.")
        return torch.stack(images)

    def predict(self, images: Any, **options: Any) -> Any:
        """Predict images: files, Pillow images, arrays, tensors, or a list of them; see `tetravit.predict`."""
        import tetravit  # late import: predictors are a higher layer

        return tetravit.predict(self, images, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and _is_picture(args[0]):
            raise ValueError(
                "A model takes a batch of prepared images, float (B, 3, Hi, Wi): model(model.preprocess([image]));"
                " model.predict(image) takes files, Pillow images and arrays."
            )
        return super().__call__(*args, **kwargs)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images -> feature maps, fine to coarse."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, mode: bool = True) -> Self:
        """Recompute the blocks of the backbone, and the layers of heads that support it, in the backward pass.

        Less memory, about a third more time.
        """
        self.backbone.set_grad_checkpointing(mode)
        if isinstance(self.head, Head):
            self.head.set_grad_checkpointing(mode)
        return self


class DenseModel(Model):
    """A backbone with its adapter and a head on four maps at strides 4, 8, 16, 32."""

    head: Head

    def __init__(
        self,
        backbone: PyramidBackbone,
        head: Head,
        *,
        name: str = "",
        head_name: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name=name, head_name=head_name, options=options)
        self.backbone, self.pyramid, self.head = backbone.backbone, backbone.pyramid, head
        self.num_classes = head.num_classes
        self.set_input(None)

    @classmethod
    def build(
        cls,
        name: str,
        options: Mapping[str, Any],
        *,
        head: str,
        head_options: Mapping[str, Any],
        num_classes: int,
        fill: Callable[[Backbone], Any] | None = None,
    ) -> Self:
        cls.check_classes(num_classes)
        backbone = create_backbone(name, task=cast(Literal["detect", "segment"], cls.kind), **options)
        if fill is not None:
            fill(backbone.backbone)
        row: Any = HEADS[head]
        given = {**options, **({"head_options": dict(head_options)} if head_options else {})}
        model = cls(
            backbone,
            row(backbone.channels, backbone.strides, num_classes=num_classes, **head_options),
            name=name,
            head_name=head,
            options=given,
        )
        model.freeze_unused()
        return model

    def reset_head(self, num_classes: int) -> None:
        """Replace the head for another number of classes: class scores are initialised anew, other tensors are kept.

        Dtype and device are unchanged.

        Raises:
            ValueError: for an invalid number of classes, or a model that was not built by name.
        """
        self.check_classes(num_classes)
        if not self.head_name:
            raise ValueError(
                f"reset_head needs a {self.noun} built by name: create_{self.noun}(NAME, num_classes={num_classes})."
            )
        old, row = self.head, cast(Any, HEADS[self.head_name])
        head: Head = row(
            self.pyramid.channels,
            self.pyramid.strides,
            num_classes=num_classes,
            **self.options.get("head_options", {}),
        )
        like = next(old.parameters())
        own = next(head.parameters())
        if (own.device, own.dtype) != (like.device, like.dtype):
            head = head.to(like.device, like.dtype)
        kept = {
            name: value
            for name, value in old.state_dict().items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in row.fresh)
        }
        head.load_state_dict(kept, strict=False, assign=like.is_meta)
        self.head = head.train(self.training)
        self.num_classes, self.class_names, self.thresholds = num_classes, (), ()
        self.freeze_unused()

    @classmethod
    def check_classes(cls, num_classes: int) -> None:
        """Raises: ValueError for an invalid number of classes."""
        if num_classes < 1:
            raise ValueError(f"num_classes of a {cls.noun} is 1 or more; got {num_classes!r}.")

    @classmethod
    def layouts_of(cls, family: str, head: str) -> Mapping[str, Names]:
        return dense_maps(family, head)

    def unused(self) -> list[str]:
        adapter = ADAPTERS.get(family_of(self))
        return [f"{start}*" for start in adapter.unused] if adapter else []

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images -> the four maps at strides 4, 8, 16, 32, inputs of the head."""
        maps: list[Tensor] = self.pyramid(_contiguous(self.backbone.feature_maps(images)))
        return _contiguous(maps)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the parts that depend only on the shape of a batch: backbone, adapter and the head's forward pass.

        From the third shape on, the graphs are for dynamic shapes. Window attention needs several of them: for sides
        divisible into windows, and for others; so torch's limit on graphs, which is global to the process, is raised.
        """
        from torch._dynamo import config  # imports the compiler

        config.recompile_limit = max(config.recompile_limit, GRAPHS)
        self.feature_maps = torch.compile(self.feature_maps, *args, **kwargs)  # type: ignore[method-assign]
        self.head.compile(*args, **kwargs)

    def freeze_unused(self) -> None:
        """Freeze parameters that only classification uses, or that lead to a map unused by the head.

        DistributedDataParallel requires a gradient for every trainable parameter.
        """
        adapter = ADAPTERS.get(family_of(self))
        unused = list(adapter.unused if adapter else ("backbone.norm.",))
        for level in range(self.head.first_map):
            unused += [f"pyramid.levels.{level}.", f"pyramid.norms.{level}."]
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(unused)):
                parameter.requires_grad_(False)


def _contiguous(maps: list[Tensor]) -> list[Tensor]:
    """Maps; contiguous in captured graphs: torch 2.15 cannot prove another memory format for every size."""
    return [x.contiguous() for x in maps] if torch.compiler.is_exporting() else maps


def _is_picture(thing: Any) -> bool:
    """Whether it is a path, a Pillow image, an array, or a list."""
    library = type(thing).__module__.partition(".")[0]
    return isinstance(thing, str | os.PathLike | list | tuple) or library in ("PIL", "numpy")
