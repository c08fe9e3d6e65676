"""The contract of a task: the computation of a training step, and its state besides the weights."""

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

Schedule = Callable[[int], float]  # step, from 0 -> value of a setting


class TaskConfig(BaseModel):
    """The `[task]` section of a recipe: `name`, and the keys of that task."""

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
        """The epoch of the step, counted from 0."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """The completed share of the run after this step, in (0, 1]."""
        return (self.step + 1) / self.total_steps


class Task(nn.Module):
    """A model with its training step. A row of the menu `TASKS`.

    model: the model that is trained, averaged and, unless `weights` differs, evaluated, saved and exported. Other
    modules and buffers of a task (a teacher, a projection head, a centre) are part of its state, and of every
    checkpoint.

    Config: its section of a recipe. model_kind: kind of model. data_kinds: kinds of data sets. protocol: default
    evaluation protocol. primary_metric: the score that selects the best weights; "": that of the protocol. best_is:
    whether `higher` or `lower` is better. static_graph: whether all steps without accumulation run the same
    operations (DDP's static graph).

    Raises:
        ValueError: if the model does not match the data.
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
        self.loss_scale: Tensor | None = None  # loss scale of the backward pass, set by the loop
        self.config: Any = config

    @classmethod
    def create(cls, name: str, *, data: DatasetInfo, **model_options: Any) -> nn.Module:
        """Build the model `name` for these data; `model_options`: other keys of the `[model]` section.

        Raises:
            ValueError: for an unknown option.
        """
        raise NotImplementedError

    def prepare(self, data: DataConfig) -> None:
        """Check the `[data]` section and load objects needed only in training, before a run writes anything.

        Raises:
            ValueError: if the task does not support these data settings.
        """
        if data.mix:
            raise ValueError(f"The task {self.config.name!r} mixes no images; got data.mix={data.mix!r}.")

    def views(self) -> Sequence[str] | None:
        """The augmentation of each view of a training image, in the syntax of `data.augment`.

        The first gives a batch's images, the others its `views`. None: one view, from `data.augment`.
        """
        return None

    def parameter_groups(self, settings: Any) -> list[dict[str, Any]] | None:
        """Parameter groups for the optimizer; None: those of `engine.optim.groups`.

        settings: the `[optim]` section. A group has `params`, optionally `weight_decay` (0: not changed by a schedule
        of the weight decay) and `scale`, a factor on the learning rate.
        """
        return None

    def joint_clip(self) -> Sequence[Sequence[Tensor]]:
        """Lists of parameters whose gradients share one norm if `optim.clip_by` is `each`."""
        return ()

    def schedules(self, total_steps: int, steps_per_epoch: int, batch_size: int) -> Mapping[str, Schedule]:
        """Schedules of optimizer settings other than the learning rate ("weight_decay", ...)."""
        return {}

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute the scalar "loss" of a micro-batch on the model's device, and scalars to log."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Calls `step`, for wrappers such as DDP."""
        return self.step(batch, progress)

    def whole_step(self, batches: Sequence[Batch], gather: Gather) -> AbstractContextManager[None]:
        """Context of a micro-batch's forward and backward pass, for a loss that depends on the other micro-batches.

        batches: the micro-batches of the step on this rank. gather: plain data of this rank -> those of all ranks.
        """
        return nullcontext()

    def before_update(self, progress: Progress) -> None:
        """Called between the backward pass, with gradients unscaled and clipped, and the optimizer; may drop
        gradients."""

    def after_update(self, progress: Progress, good: Tensor) -> None:
        """Called after the optimizer: update a teacher, a centre, an average.

        good: scalar bool on the device; False: loss or gradient were not finite, the optimizer changed no weight, and
        this method must change no state either. Use `torch.where`: reading it synchronizes a GPU.
        """

    def log_values(self, progress: Progress) -> dict[str, float]:
        """Logged values that are not means over steps. Called once per log line, on every rank.

        They are computed from state of the task, equal on all ranks, which is reset here.
        """
        return {}

    def alarm(self, values: dict[str, float]) -> str | None:
        """A message if the `log_values` of a line show a failed run; reported once. None: no failure."""
        return None

    def plan_lines(self, total_steps: int, steps_per_epoch: int, batch_size: int) -> list[tuple[str, str]]:
        """Rows of this task in the plan of a run: a short name and a text each."""
        return []

    def data_notes(self, dataset: Dataset) -> list[str]:
        """Notes on the training images in the plan of a run."""
        return []

    def weights(self) -> nn.Module:
        """The network that is evaluated and saved as weights."""
        return self.model

    def external_modules(self) -> list[nn.Module]:
        """Networks called in a step that are not part of the task, and so of no checkpoint."""
        return []

    def example(self, count: int, size: int | tuple[int, int]) -> Batch | None:
        """`count` random images of `size` pixels (a side, or height and width), for profiling a step.

        None if the task does not support it.
        """
        return None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device
