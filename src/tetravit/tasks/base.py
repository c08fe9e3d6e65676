"""The contract of every task: what one step means, and how good the weights are."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from tetravit.structures import Batch, Kind, Preprocess


class TaskConfig(BaseModel):
    """The `[task]` section of a recipe: `name`, and what the task of that name adds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str

    def published_as(self, score: str) -> str | None:
        """What catalogues call a score that is measured as this section says; None: nobody publishes that."""
        return score

    def eval_scales(self) -> tuple[float, ...]:
        """How large an image is made for each look at it when the task is scored; see `make_eval_loader`."""
        return (1.0,)


class Task(nn.Module):
    """A model, and what to do with it in a step.

    model: what is saved, averaged and exported. A task may hold other modules that only training needs
    (a projection head): they are part of a checkpoint, not of the saved weights.
    Config: the task's section of a recipe. serves: the task that the trained model is used for, where that has
    another name. reads: the kind of data sets it trains on. watch: the score that picks the best weights;
    `higher` or `lower` is better. findings: what the last `score` saw beyond numbers, as plain data for a report.
    """

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    serves: ClassVar[str] = ""
    reads: ClassVar[Kind] = "classify"
    watch: ClassVar[str] = ""
    best_is: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.findings: dict[str, Any] = {}

    @classmethod
    def create(cls, name: str, *, num_classes: int, **options: Any) -> nn.Module:
        """The model of that name as this task trains it; `options`: what the `[model]` section sets beside it.

        Raises:
            ValueError: for an option that such a model does not have.
        """
        raise NotImplementedError

    def prepare(self, images: Preprocess) -> None:
        """Once, before a run writes anything: load what only training needs; `images` is how it sees them.

        Raises:
            ValueError: if the task cannot train on such images.
        """

    def example(self, count: int, size: int | tuple[int, int]) -> Batch | None:
        """`count` made-up images of `size` pixels a side, or height and width, to time a step with.

        None where a task has none.
        """
        return None

    def companions(self) -> list[nn.Module]:
        """Networks that a step asks but that are no part of the task, and so of no checkpoint."""
        return []

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The scalar "loss" of a micro-batch on the model's device, and scalars to log beside it."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The same as `step`: what a wrapper that averages gradients calls."""
        return self.step(batch)

    def after_step(self, progress: float) -> None:
        """Once the weights have moved; `progress` of the run in (0, 1]."""

    def score(self, loader: Iterable[Batch]) -> dict[str, float]:
        """How good the model is on a set, over all ranks. Called in evaluation mode, without gradients."""
        raise NotImplementedError

    def better(self, value: float, than: float) -> bool:
        """Whether one value of the watched score beats another."""
        return value > than if self.best_is == "higher" else value < than

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def from_ranks(value: list[Any]) -> list[Any]:
    """The lists of all ranks, one after another; plain data."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return [entry for part in parts for entry in part]
