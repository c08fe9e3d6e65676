"""Samples in an order that depends on the seed alone.

Sample k of epoch e, its place in the order and its augmentation, is a function of (seed, e, k). So the
batches are the same for any number of workers, for any number of ranks (their union), and from whichever
step one starts: to resume, nothing needs to be restored but the step.
"""

import inspect
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tetravit.data.augment import parse
from tetravit.data.datasets import DATASETS, Dataset
from tetravit.data.options import Options
from tetravit.data.prepare import OnBad, Order, PrepareEval, PrepareTrain, Reader, Result, Transform
from tetravit.data.preprocess import eval_transform, scaled
from tetravit.data.stream import Stream
from tetravit.data.transforms.mixup import parse_mix
from tetravit.registry import pick, suggestion
from tetravit.structures import Batch, Preprocess

LOG = logging.getLogger("tetravit.data")
MAX_WORKERS = 8


class DataConfig(BaseModel):
    """Section [data] of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    root: Path | None = None
    image_size: int = Field(224, ge=1)  # pixels
    batch_size: int = Field(ge=1)  # over all ranks and accumulated steps
    val_batch_size: int | None = Field(None, ge=1)  # per rank; None: as batch_size
    repeats: int = Field(1, ge=1)  # views of each drawn image
    group: int = Field(
        1, ge=1
    )  # dense tasks: so many images that are all wider than high, or all not, go together
    bucket: int = Field(1, ge=1)  # dense tasks: sides of a padded batch are multiples of so many pixels
    augment: str = "crop | flip"
    mix: str = ""
    workers: int | Literal["auto"] = "auto"  # per rank
    crop: float = Field(0.875, gt=0, le=1)  # evaluation: share of the resized image that is seen
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # evaluation
    mode: Literal["center", "squash", "fit"] = "center"  # evaluation: see `structures.Preprocess`
    short: int | None = Field(None, ge=1)  # evaluation: side in pixels; None: image_size
    longest: int | None = Field(None, ge=1)  # evaluation, mode fit: pixels of the long side at most
    on_bad: OnBad = "error"
    bad_limit: float = Field(0.001, ge=0, le=1)  # share of bad images above which "skip" gives up
    options: Options = Field(default_factory=dict)  # arguments of the data set

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"workers is auto, or 0 or more; got {value}.")
        return value

    @field_validator("augment")
    @classmethod
    def _augment(cls, value: str) -> str:
        parse(value, size=1)
        return value

    @field_validator("mix")
    @classmethod
    def _mix(cls, value: str) -> str:
        parse_mix(value, num_classes=2)
        return value

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared for evaluation, and by users of the trained weights."""
        return Preprocess(
            size=self.short or self.image_size,
            crop=self.crop,
            interpolation=self.interpolation,
            mode=self.mode,
            longest=self.longest,
        )

    def canvas(self, images: int) -> tuple[int, int]:
        """The largest height and width, or width and height, of a part of a batch that holds `images` images.

        Where images keep their ratio, high ones beside wide ones are filled up to a square.
        """
        given = [step.limits for step in parse(self.augment, size=self.image_size).steps if step.limits]
        if not given:
            return self.image_size, self.image_size
        short, longest = (-(-side // self.bucket) * self.bucket for side in given[-1])
        return (short if images <= self.group else longest), longest


def build_dataset(config: DataConfig, split: Literal["train", "val"]) -> Dataset:
    """The data set that a config names.

    Raises:
        ValueError: for an unknown name or option, or a root without the images it should hold.
    """
    row = pick(DATASETS, config.name, "data set")
    known = [p for p in inspect.signature(row).parameters if p not in ("root", "split")]
    for option in config.options:
        if option not in known:
            raise ValueError(
                f"The data set {config.name!r} has no option {option!r}.{suggestion(option, known)}"
            )
    dataset: Dataset = row(config.root, split, **config.options)
    return dataset


def make_train_loader(
    config: DataConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    pin_memory: bool = False,
) -> "TrainLoader":
    """The training batches that a config describes.

    Raises:
        ValueError: for anything in the config that cannot be had.
    """
    dataset = build_dataset(config, "train")
    return TrainLoader(
        dataset,
        parse(config.augment, size=config.image_size),
        batch_size=config.batch_size,
        accumulate=accumulate,
        repeats=config.repeats,
        group=config.group,
        bucket=config.bucket,
        seed=seed,
        rank=rank,
        world_size=world_size,
        workers=resolve_workers(config.workers, dataset),
        mix=config.mix,
        on_bad=config.on_bad,
        bad_limit=config.bad_limit,
        pin_memory=pin_memory,
    )


def make_eval_loader(
    config: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    split: Literal["train", "val"] = "val",
    preprocess: Preprocess | None = None,
    scales: Sequence[float] = (1.0,),
    pin_memory: bool = False,
) -> "EvalLoader":
    """One rank's share of the evaluation batches that a config describes; `preprocess` replaces the config's.

    scales: how large images are made from the originals, as factors on the limits of the preprocessing; the first
    are a batch's images, the others its `views`.

    Raises:
        ValueError: for anything in the config that cannot be had.
    """
    dataset = build_dataset(config, split)
    first, *more = (eval_transform(scaled(preprocess or config.preprocess, scale)) for scale in scales)
    return EvalLoader(
        dataset,
        first,
        more=more,
        batch_size=config.val_batch_size or max(1, config.batch_size // world_size),
        rank=rank,
        world_size=world_size,
        workers=resolve_workers(config.workers, dataset),
        on_bad=config.on_bad,
        bad_limit=config.bad_limit,
        pin_memory=pin_memory,
    )


def resolve_workers(workers: int | Literal["auto"], dataset: Dataset) -> int:
    """`auto`: none for a set in memory; else this rank's cores, one kept back, at most MAX_WORKERS."""
    if workers != "auto":
        return workers
    if getattr(dataset, "in_memory", False):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, cores // ranks_here - 1))


class TrainLoader:
    """Training batches of one rank, from any step on, without end.

    Args:
        dataset: the images.
        transform: image uint8 (3, Hi, Wi) -> float tensor; draws from torch's global generator only.
        batch_size: images of one optimisation step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches per step.
        repeats: views of each drawn image, side by side in the order; an epoch draws as many samples as the
            set has images, of a 1 / repeats part of them (repeated augmentation, Hoffer et al. 2020).
        group: so many images that are all wider than high, or all not, stand together in the order, so that little
            of a batch is filling; the set says which are which in `wide`. Ranks get whole groups where their number
            divides the groups of a micro-batch.
        bucket: sides of a batch that is filled up are multiples of so many pixels.
        seed: decides everything that is random here.
        rank, world_size: which share of every micro-batch is ours: positions rank, rank + world_size, ...
        workers: processes that prepare batches; 0: this one.
        mix: the text of mixup and cutmix, which need an even number of images.
        on_bad: what an unreadable image does: raise its `BadImage`, or give its place to the next in the
            order.
        bad_limit: share of the images above which "skip" gives up; one bad image is always let pass.
        pin_memory: batches in page-locked memory.

    `bad` maps the names of skipped images to the causes.

    Raises:
        ValueError: if the batch does not divide, the set is smaller than a batch, or `mix` meets an odd
        number.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        *,
        batch_size: int,
        accumulate: int = 1,
        repeats: int = 1,
        group: int = 1,
        bucket: int = 1,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        mix: str | None = None,
        on_bad: OnBad = "error",
        bad_limit: float = 0.001,
        pin_memory: bool = False,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise ValueError(
                f"The batch must divide over ranks and accumulated steps; got batch_size={batch_size},"
                f" {world_size} ranks, accumulate={accumulate}."
            )
        if len(dataset) < batch_size:
            raise ValueError(
                f"The training set has {len(dataset)} images, fewer than one batch of {batch_size}."
            )
        share = batch_size // (world_size * accumulate)
        if mix and share % 2:
            raise ValueError(
                f"mix pairs images, so each rank needs an even number at a time; got batch_size={batch_size},"
                f" {world_size} ranks, accumulate={accumulate}: {share}."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.workers = workers
        self.pin_memory = pin_memory
        self.steps_per_epoch = len(dataset) // batch_size
        self.samples_per_epoch = self.steps_per_epoch * batch_size
        wide = getattr(dataset, "wide", None)
        if group > 1 and (wide is None or (batch_size // accumulate) % group or repeats > 1):
            raise ValueError(
                f"data.group needs a set that knows its images' sizes, and divides a batch without repeats; got"
                f" group={group}, batch_size={batch_size}, accumulate={accumulate}, repeats={repeats}."
            )
        order = Order(len(dataset), repeats, seed, wide=wide, group=group, micro=batch_size // accumulate)
        self._prepare = PrepareTrain(
            Reader(dataset, transform, on_bad), order, batch_size, accumulate, rank, world_size, bucket
        )
        self._bad = _BadCount(on_bad, bad_limit, len(dataset))
        self._stream: Stream[Result] | None = None

    @property
    def bad(self) -> dict[str, str]:
        return self._bad.causes

    def batches(self, start: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of step `start`, of the next, and so on for ever, across epochs.

        Raises:
            BadImage: for an unreadable image, if such are errors.
            ValueError: if more images are unreadable than allowed, or those of a batch differ in size.
        """
        self.close()
        jobs = ((step, micro) for step in itertools.count(start) for micro in range(self.accumulate))
        self._stream = stream = Stream(self._prepare, jobs, self.workers, self.pin_memory)
        while stream is self._stream:
            yield [self._bad.check(next(stream)) for _ in range(self.accumulate)]

    def close(self) -> None:
        """Stop the workers; iterators handed out before end."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class EvalLoader:
    """This rank's images, each once, in order: positions rank, rank + world_size, ...

    Unreadable images are errors, or are left out and listed in `bad`. The arguments are those of
    `TrainLoader`; `batch_size` is this rank's own, and the last batch may be smaller. more: transforms of the same
    images, whose results are the `views` of a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        *,
        more: Sequence[Transform] = (),
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        on_bad: OnBad = "error",
        bad_limit: float = 0.001,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.total = len(dataset)
        self.workers = workers
        self.pin_memory = pin_memory
        mine = range(rank, self.total, world_size)
        self._parts = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        self._prepare = PrepareEval(Reader(dataset, transform, on_bad), more)
        self._bad = _BadCount(on_bad, bad_limit, self.total)

    @property
    def bad(self) -> dict[str, str]:
        return self._bad.causes

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        stream = Stream(
            self._prepare, iter(self._parts), min(self.workers, len(self._parts)), self.pin_memory
        )
        try:
            for result in stream:
                batch = self._bad.check(result)
                if len(batch):
                    yield batch
        finally:
            stream.close()


class _BadCount:
    """Collects unreadable images; raises when there are too many."""

    def __init__(self, on_bad: OnBad, limit: float, total: int) -> None:
        self.on_bad = on_bad
        self.limit = limit
        self.total = total
        self.causes: dict[str, str] = {}

    def check(self, result: Result) -> Batch:
        for bad in result.bad:
            if bad.name not in self.causes:
                LOG.warning("%s It is skipped.", bad)
            self.causes[bad.name] = bad.cause
        if result.bad and len(self.causes) > max(1, int(self.limit * self.total)):
            raise ValueError(
                f"{len(self.causes)} of {self.total} images cannot be read, more than"
                f" data.bad_limit={self.limit:g} allows; the last: {result.bad[-1]}"
            )
        if result.error is not None:
            raise result.error
        assert result.batch is not None
        return result.batch
