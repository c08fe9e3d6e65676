"""The contract of a protocol: score weights on data, with findings."""

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
    """The `[evaluate]` section of a recipe: `protocol`, and the keys of that protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    protocol: str = Field(default="", description="Evaluation protocol; empty: the default of the task.")

    def published_as(self, score: str) -> str | None:
        """The catalogue's name of a score under these settings; None: no published score matches them."""
        return score

    def eval_scales(self) -> tuple[float, ...]:
        """Scale factors of multi-scale evaluation; each image is preprocessed once per scale."""
        return (1.0,)


@dataclass(frozen=True)
class Scores:
    """Result of a protocol.

    values: scores by name; shares are in [0, 1]. findings: per-class and per-image results, as plain data for a
        report.
    """

    values: dict[str, float]
    findings: dict[str, Any] = field(default_factory=dict)


class Augmented(Interface):
    """Endless augmented batches of the training set, this rank's share of each."""

    dataset: Any
    batch_size: int

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start: int = 0) -> Iterator[list[Batch]]:
        """The batches of step `start`, `start + 1`, ..., each in a list of one."""
        ...

    def close(self) -> None: ...


class Loaders:
    """Data loaders for scoring, this rank's share.

    Args:
        validation: batches of the validation set, each image once.
        info: of the validation set.
        make_train: builds the loader of the training set, preprocessed as for evaluation, each image once; called at
            the first access to `train`. None: no training set.
        make_augmented: builds augmented batches of the training set from an augmentation, a global batch size and a
            seed. None: not available.
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
        """Batches of the training set, preprocessed as for evaluation.

        Raises:
            ValueError: if there is no training set.
        """
        if self._train is None:
            if self._make_train is None:
                raise ValueError("This protocol also reads the training set, and there is none.")
            self._train = self._make_train()
        return self._train

    def augmented(self, text: str, *, batch_size: int, seed: int) -> Augmented:
        """The training set with the augmentation `text`, in global batches of a given size.

        Raises:
            ValueError: if there is no training set, or it is smaller than a batch.
        """
        if self._make_augmented is None:
            raise ValueError("This protocol trains on augmented images, and there is no training set.")
        return self._make_augmented(text, batch_size, seed)


class Protocol:
    """An evaluation protocol; a row of the menu `PROTOCOLS`.

    name: in the menu. kinds: kinds of data sets. primary_metrics: scores that can select the best weights of a run,
    in order of preference. best_is: whether `higher` or `lower` is better. reads_data: whether it scores on the data
    set of a recipe; otherwise it has its own images, and runs use another protocol. Config: its section of a recipe.
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
        """Check the requirements of the protocol, before a run writes anything.

        Returns:
            One line per score that is not available for these data, or is measured differently than published.

        Raises:
            ValueError: if a package is missing, or the data cannot be scored.
        """
        return []

    def score(self, model: nn.Module, loaders: Loaders) -> Scores:
        """Score `model`, in evaluation mode and without gradients, over all ranks.

        Raises:
            ValueError: if the set is empty, or the model does not match the data.
        """
        raise NotImplementedError

    def primary(self, values: Mapping[str, float]) -> str | None:
        """The score among `values` that selects weights, or None."""
        return next((name for name in self.primary_metrics if name in values), None)

    def better(self, value: float, than: float) -> bool:
        """Whether one value of the primary score is better than another."""
        return value > than if self.best_is == "higher" else value < than


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def check_classes(model: nn.Module, info: DatasetInfo) -> None:
    """Raises: ValueError if model and data set have different numbers of classes."""
    have = getattr(model, "num_classes", info.num_classes)
    if have != info.num_classes:
        raise ValueError(f"The model has {have} classes; the data has {info.num_classes}.")
