"""The contract of a task: what one training step computes, and its state beside the weights."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tetravit.data.config import DataConfig
from tetravit.data.datasets.base import Dataset, DatasetInfo
from tetravit.heads.base import Gather
from tetravit.structures import Batch, Kind

Schedule = Callable[[int], float]  # the value of a setting at a step, counted from 0


class TaskConfig(BaseModel):
    """The `[task]` section of a recipe: `name`, and what the task of that name adds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(description="The training method; `tetravit list tasks`.")


@dataclass(frozen=True)
class Progress:
    """The position of a step in its run. step: counted from 0."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """The epoch that the step is part of, counted from 0."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """The share of the run that is done after this step, in (0, 1]."""
        return (self.step + 1) / self.total_steps


class Task(nn.Module):
    """A model and one training step of it. A row of the menu `TASKS`.

    model: what is trained, averaged and, unless `weights` says otherwise, evaluated, saved and exported. Other
    modules and buffers of a task (a teacher, a projection head, a centre) are part of its state, and with it of
    every checkpoint.

    Config: its section of a recipe. model_kind: the kind of model it trains. data_kinds: the data sets it trains
    on. protocol: how its weights are scored, unless a recipe says otherwise. primary_metric: the score that
    selects the best weights; "": that of the protocol. best_is: whether `higher` or `lower` is better.
    static_graph: whether all steps without accumulation run the same operations, so that DDP records them once.

    Raises:
        ValueError: if the model does not fit the data.
    """

    Config: ClassVar[type[TaskConfig]] = TaskConfig
    model_kind: ClassVar[Kind] = "classify"
    data_kinds: ClassVar[tuple[str, ...]] = ("classify",)
    protocol: ClassVar[str] = "accuracy"
    primary_metric: ClassVar[str] = ""
    best_is: ClassVar[Literal["higher", "lower"]] = "higher"
    static_graph: bool = False

    def __init__(self, model: nn.Module, config: TaskConfig, data: DatasetInfo) -> None:
        super().__init__()
        self.model, self.data = model, data
        self.loss_scale: Tensor | None = None  # set by the loop: the factor on the loss in its backward pass
        self.config: Any = config

    @classmethod
    def create(cls, name: str, *, data: DatasetInfo, **model_options: Any) -> nn.Module:
        """The model called `name`, for these data; `model_options`: what the `[model]` section sets beside it.

        Raises:
            ValueError: for an option that such a model does not have.
        """
        raise NotImplementedError

    def prepare(self, data: DataConfig) -> None:
        """Once, before a run writes anything: check the `[data]` section and load what only training needs.

        Raises:
            ValueError: if the task cannot train on images that are prepared so.
        """
        if data.mix:
            raise ValueError(f"The task {self.config.name!r} mixes no images; got data.mix={data.mix!r}.")

    def views(self) -> Sequence[str] | None:
        """The augmentation of each view of a training image, as texts like `data.augment`.

        The first makes a batch's images, the others its `views`. None: one view, by `data.augment`.
        """
        return None

    def parameter_groups(self, settings: Any) -> list[dict[str, Any]] | None:
        """Groups of parameters for the optimizer; None: those of `engine.optim.groups`.

        settings: the `[optim]` section. A group has `params`, and may have `weight_decay` (0: a schedule of the
        weight decay leaves the group alone) and `scale`, a factor on the learning rate.
        """
        return None

    def joint_clip(self) -> Sequence[Sequence[Tensor]]:
        """Lists of parameters whose gradients share one norm where `optim.clip_by` is `each`."""
        return ()

    def schedules(self, total_steps: int, steps_per_epoch: int, batch_size: int) -> Mapping[str, Schedule]:
        """Settings of the optimizer that change during the run, besides the learning rate ("weight_decay", ...)."""
        return {}

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The scalar "loss" of a micro-batch on the model's device, and scalars to log beside it."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The same as `step`: what a wrapper that averages gradients calls."""
        return self.step(batch, progress)

    def whole_step(self, batches: Sequence[Batch], gather: Gather) -> AbstractContextManager[None]:
        """Around the forward and backward pass of each micro-batch, for a loss that depends on the other ones.

        batches: the micro-batches of the step on this rank. gather: plain data of this rank -> those of all ranks.
        """
        return nullcontext()

    def before_update(self, progress: Progress) -> None:
        """Between the backward pass, with gradients unscaled and clipped, and the optimizer; may drop gradients."""

    def after_update(self, progress: Progress, good: Tensor) -> None:
        """After the optimizer: update a teacher, a centre, an average.

        good: scalar bool on the device; False: the loss or a gradient was not finite, the optimizer moved no
        weight, and this method must not either. Select with `torch.where`: reading it synchronizes a GPU.
        """

    def log_values(self, progress: Progress) -> dict[str, float]:
        """Values for a line of the log that are no means over its steps. Called once per line, on every rank.

        What they are computed from is state of the task, equal on all ranks, and starts anew here.
        """
        return {}

    def alarm(self, values: dict[str, float]) -> str | None:
        """One line if the `log_values` of a line show that the run has failed; reported once. None: they do not."""
        return None

    def plan_lines(self, total_steps: int, steps_per_epoch: int, batch_size: int) -> list[tuple[str, str]]:
        """Rows that the plan of a run shows of this task: a short name and a text each."""
        return []

    def data_notes(self, dataset: Dataset) -> list[str]:
        """Lines about the training images that the plan of a run shows."""
        return []

    def weights(self) -> nn.Module:
        """The network that is evaluated and saved as weights."""
        return self.model

    def external_modules(self) -> list[nn.Module]:
        """Networks that a step calls but that are not part of the task, and so of no checkpoint."""
        return []

    def example(self, count: int, size: int | tuple[int, int]) -> Batch | None:
        """`count` random images of `size` pixels a side, or height and width, to profile a step with.

        None where a task has none.
        """
        return None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device
