"""The contract of a protocol: weights and data in, scores and findings out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from typing import Protocol as Interface

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from tetravit.data.datasets.base import DatasetInfo
from tetravit.structures import Batch
from tetravit.world import World

EMPTY = "The set to score on is empty."


class ProtocolConfig(BaseModel):
    """The `[evaluate]` section of a recipe: `protocol`, and what the protocol of that name adds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    protocol: str = Field(default="", description="How weights are scored; empty: the usual one of the task.")

    def published_as(self, score: str) -> str | None:
        """The catalogue's name of a score measured with these settings; None: no published figure is."""
        return score

    def eval_scales(self) -> tuple[float, ...]:
        """Factors on the size of the images; each image is prepared once for each."""
        return (1.0,)


@dataclass(frozen=True)
class Scores:
    """What a protocol measured.

    values: scores by name; shares are in [0, 1]. findings: per class and per image, as plain data for a report.
    """

    values: dict[str, float]
    findings: dict[str, Any] = field(default_factory=dict)


class Augmented(Interface):
    """Augmented batches of the training set, this rank's share of each, epoch after epoch without end."""

    dataset: Any
    batch_size: int

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start: int = 0) -> Iterator[list[Batch]]:
        """The batches of step `start`, `start + 1`, ..., each a list of one."""
        ...

    def close(self) -> None: ...


class Loaders:
    """The data that weights are scored on, this rank's share of it.

    Args:
        validation: batches of the validation set, each image once.
        info: of the validation set.
        make_train: builds the batches of the training set, prepared as for evaluation, each image once; called
            when a protocol first reads `train`. None: there is no training set.
        make_augmented: builds augmented batches of the training set from a text, a batch size over all ranks and a
            seed. None: there are none.
        world: the processes that score together.
    """

    def __init__(
        self,
        validation: Iterable[Batch],
        info: DatasetInfo,
        *,
        make_train: Callable[[], Iterable[Batch]] | None = None,
        make_augmented: Callable[[str, int, int], Augmented] | None = None,
        world: World | None = None,
    ) -> None:
        self.validation, self.info = validation, info
        self.world = world if world is not None else World()
        self._make_train, self._make_augmented = make_train, make_augmented
        self._train: Iterable[Batch] | None = None

    @property
    def train(self) -> Iterable[Batch]:
        """Batches of the training set, prepared as for evaluation.

        Raises:
            ValueError: if there is no training set.
        """
        if self._train is None:
            if self._make_train is None:
                raise ValueError("This protocol also reads the training set, and there is none.")
            self._train = self._make_train()
        return self._train

    def augmented(self, text: str, *, batch_size: int, seed: int) -> Augmented:
        """The training set under the augmentation that `text` describes, so many images at a time over all ranks.

        Raises:
            ValueError: if there is no training set, or it is smaller than a batch.
        """
        if self._make_augmented is None:
            raise ValueError("This protocol trains on augmented images, and there is no training set.")
        return self._make_augmented(text, batch_size, seed)


class Protocol:
    """A way of scoring weights; a row of the menu `PROTOCOLS`.

    name: its name in the menu. kinds: of the data sets it scores on. primary_metrics: which of its scores selects
    the best weights of a run: the first of these that there is. best_is: whether `higher` or `lower` is better.
    reads_data: whether it scores on the data set of a recipe; else on images of its own, and runs score with another.
    Config: its section of a recipe.
    """

    name: ClassVar[str] = ""
    reads_data: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ()
    primary_metrics: ClassVar[tuple[str, ...]] = ()
    best_is: ClassVar[Literal["higher", "lower"]] = "higher"
    Config: ClassVar[type[ProtocolConfig]] = ProtocolConfig

    def __init__(self, config: ProtocolConfig | None = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def prepare(self, loaders: Loaders) -> list[str]:
        """Once, before a run writes anything: check what the protocol needs.

        Returns:
            One line for each score that these data cannot give, or that is measured otherwise than published.

        Raises:
            ValueError: if a package is missing, or the data cannot be scored at all.
        """
        return []

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        """Score `model`, which is in evaluation mode, over all ranks. Called without gradients.

        Raises:
            ValueError: if the set is empty, or the model does not fit the data.
        """
        raise NotImplementedError

    def primary(self, values: Mapping[str, float]) -> str | None:
        """The score among `values` that selects weights; None: there is none."""
        return next((name for name in self.primary_metrics if name in values), None)

    def better(self, value: float, than: float) -> bool:
        """Whether one value of the primary score is better than another."""
        return value > than if self.best_is == "higher" else value < than


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def check_classes(model: nn.Module, info: DatasetInfo) -> None:
    """Raises: ValueError if a model has another number of classes than a data set."""
    have = getattr(model, "num_classes", info.num_classes)
    if have != info.num_classes:
        raise ValueError(f"The model has {have} classes; the data has {info.num_classes}.")
