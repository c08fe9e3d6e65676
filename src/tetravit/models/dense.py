"""What segmenters and detectors share: a backbone with its adapter, a head, what is known of their weights."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tetravit.models.build import family
from tetravit.models.pyramid import PyramidBackbone
from tetravit.structures import Kind, Preprocess, for_channels
from tetravit.weights import convert
from tetravit.weights.mmdet import UNUSED
from tetravit.weights.read import Report

GRAPHS = 32  # of one function: GC ViT's windows of 24 tokens divide four maps in up to 15 ways


class DenseModel(nn.Module):
    """A backbone with its adapter and a head over four maps.

    name, head_name, options: the arguments that build it again by name. class_names: one per class, where known.
    input: what its weights expect of a picture; `preprocess` does it. report: what became of every tensor of the
    weights it was built with.
    """

    task: ClassVar[Kind]
    usual_input: ClassVar[Preprocess]

    def __init__(
        self,
        backbone: PyramidBackbone,
        head: nn.Module,
        *,
        name: str = "",
        head_name: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.head = backbone.backbone, backbone.pyramid, head
        self.num_classes: int = head.num_classes  # type: ignore[assignment]
        self.name, self.head_name, self.options = name, head_name, dict(options or {})
        self.class_names: tuple[str, ...] = ()
        self.input = for_channels(self.usual_input, self.backbone.in_chans)
        self.report: Report | None = None

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images -> the four maps at strides 4, 8, 16, 32 that the head reads."""
        maps: list[Tensor] = self.pyramid(_plain(self.backbone.feature_maps(images)))
        return _plain(maps)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what depends on the shape of a batch alone: backbone, adapter, what the head makes of its maps.

        The third shape at the latest makes graphs for any shape. Attention in windows takes a few of them: for sides
        that its windows divide, and for others; so many graphs that the limit of torch's compiler is raised, which is
        one for the whole process.
        """
        from torch._dynamo import config  # loads the compiler

        config.recompile_limit = max(config.recompile_limit, GRAPHS)  # type: ignore[attr-defined]
        self.feature_maps = torch.compile(self.feature_maps, *args, **kwargs)  # type: ignore[method-assign]
        self.head.compile(*args, **kwargs)

    def rest(self) -> None:
        """Parameters that only classification uses, or that lead to a map the head does not read, do not train.

        Several processes average gradients only where every parameter that trains has one.
        """
        idle = list(UNUSED.get(family(self.name), ("backbone.norm.",)))
        for level in range(getattr(self.head, "first_map", 0)):
            idle += [f"pyramid.levels.{level}.", f"pyramid.norms.{level}."]
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(idle)):
                parameter.requires_grad_(False)

    def preprocess(self, image: Any) -> Tensor:
        """A picture (path, Pillow image, array, tensor) -> float (3, Hi, Wi), as the weights were trained for.

        Raises:
            ValueError: if the picture cannot be read, or is not one.
        """
        from tetravit.data.preprocess import preprocess  # torchvision loads only where a picture is read

        return preprocess(image, self.input)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beyond biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, mode: bool = True) -> Self:
        """Recompute the backbone's blocks in the backward pass: less memory, about a third more time."""
        self.backbone.set_grad_checkpointing(mode)
        return self


def _plain(maps: list[Tensor]) -> list[Tensor]:
    """Maps; in graphs in the usual layout: torch 2.15 cannot prove that another one holds at every size."""
    return [x.contiguous() for x in maps] if torch.compiler.is_exporting() else maps


def head_of(found: convert.Found, task: Kind, head: str | None) -> str | None:
    """The head of weights that say what they hold, which is the one asked for, if any; else `head`.

    Raises:
        ValueError: if they hold a model for another task, or another head.
    """
    record = found.header or found.row
    if record is None:
        return head
    where = found.row.name if found.row else found.where
    if record.task != task:
        kind = {"detect": "detector", "segment": "segmenter", "classify": "classifier"}[task]
        raise ValueError(f"{where} holds a model for the task {record.task!r}; a {kind} needs {task!r}.")
    if head is not None and head != record.head:
        raise ValueError(f"{where} holds the head {record.head!r}; got head={head!r}.")
    return record.head
