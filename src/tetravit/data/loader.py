"""Samples in an order that depends on the seed alone.

Sample k of epoch e, its place in the order and its augmentation, is a function of (seed, e, k). So the
batches are the same for any number of workers, for any number of ranks (their union), and from whichever
step one starts: to resume, nothing needs to be restored but the step.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from tetravit.data.build import build_dataset, resolve_workers
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.order import Order, balancing
from tetravit.data.prepare import BadCount, Finishing, OnBad, PrepareTrain, Reader, Result, Transform
from tetravit.data.stream import Stream, fitting
from tetravit.structures import Batch, Preprocess


def make_train_loader(
    config: DataConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    pin_memory: bool = False,
    views: Sequence[str] | None = None,
    dataset: Dataset | None = None,
    finish_later: bool = False,
) -> "TrainLoader":
    """The training batches that a config describes; `dataset`: its training set, where that is built already.

    views: the augmentations of all views of an image, in place of the config's; the first makes the images of a
    batch, the others its `views`. None: one view, the config's.
    finish_later: workers send uint8 images, which `Batch.to` normalizes and erases on its device, to the same values;
    where the augmentations allow it.

    Raises:
        ValueError: for anything in the config that is not available.
    """
    if dataset is None:
        dataset = build_dataset(config, "train")
    transform, *more = map(config.augmentation, [config.augment] if views is None else views)
    plain = dataset.info.kind in ("classify", "unlabelled")
    can_wait = all(step.can_finish_later and (plain or not step.erases) for step in (transform, *more))
    finish: Finishing = "image"
    if can_wait and (finish_later or plain):
        finish = "device" if finish_later else "batch"
    share = config.batch_size // (world_size * accumulate)
    size = image_bytes(config, share, finish) * (1 + len(more))
    workers = resolve_workers(config.workers, dataset)
    if config.workers == "auto":
        workers = fitting(workers, size * share)
    return TrainLoader(
        dataset,
        transform,
        more=more,
        batch_size=config.batch_size,
        accumulate=accumulate,
        repeats=config.repeats,
        group=config.group,
        bucket=config.bucket,
        seed=seed,
        rank=rank,
        world_size=world_size,
        workers=workers,
        mix=config.mix,
        balance=config.balance,
        shuffle=config.shuffle,
        image_bytes=size,
        finish=finish,
        on_bad=config.on_bad,
        bad_limit=config.bad_limit,
        pin_memory=pin_memory,
    )


def make_augmented_loader(
    config: DataConfig,
    preprocess: Preprocess,
    class_names: Sequence[str],
    text: str,
    batch_size: int,
    seed: int,
    **ranks: Any,
) -> "TrainLoader":
    """Batches of the training set for a classifier of frozen features: augmented as `text` says, nothing mixed.

    A set that is smaller than a batch is one batch. preprocess: of the model, for the size and the colours.
    class_names: of the model, as in `make_eval_loader`. ranks: `rank`, `world_size`, `pin_memory` of `TrainLoader`.

    Raises:
        ValueError: for anything in the config or the text that is not available.
    """
    changes = {"image_size": preprocess.size, "mean": preprocess.mean, "std": preprocess.std, "augment": text}
    plain = {"mix": None, "balance": 0.0, "repeats": 1, "group": 1, "bucket": 1}
    dataset, share = build_dataset(config, "train", class_names=class_names), ranks.get("world_size", 1)
    batch = min(batch_size, len(dataset)) // share * share or batch_size
    config = config.model_copy(update={**changes, **plain, "batch_size": batch})
    return make_train_loader(config, seed=seed, dataset=dataset, **ranks)


def image_bytes(config: DataConfig, images: int, finish: Finishing = "image") -> int:
    """About the size of an image as a worker sends it, in a batch of `images`."""
    height, width = config.canvas(images)
    return (1 if finish == "device" else 4) * (config.channels or 3) * height * width


class TrainLoader:
    """Training batches of one rank, from any step on, without end.

    Args:
        dataset: the images.
        transform: image uint8 (C, Hi, Wi) -> float tensor; draws from torch's global generator only.
        more: transforms of the same decoded image, whose results are the `views` of a batch, in order. View v of a
            sample depends on (seed, epoch, position, v) alone: more views do not change the others.
        batch_size: images of one optimisation step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches per step.
        repeats: views of each drawn image, side by side in the order; an epoch draws as many samples as the
            set has images, of a 1 / repeats part of them (repeated augmentation, Hoffer et al. 2020).
        group: images per group of one orientation, all wider than high or none, so that little
            of a batch is padding; `wide` of the set has the orientations. Ranks get whole groups where their number
            divides the groups of a micro-batch.
        bucket: the sides of a padded batch are multiples of this, in pixels.
        seed: of the order and of the augmentations.
        rank, world_size: this rank's share of every micro-batch: positions rank, rank + world_size, ...
        workers: processes that prepare batches; 0: this one.
        balance: how evenly classes are drawn: 0 as they are, each image once per epoch; 1 all classes equally often;
            between them by the power of their numbers of images. Above 0, images are drawn with replacement.
        shuffle: "full", "shards(N)" or "table"; see `Order`.
        image_bytes: about the size of a prepared image, with its views; 0: not known.
        finish: where images are normalized and erased; see `PrepareTrain`.
        mix: the text of mixup and cutmix, which need an even number of images.
        on_bad: for an unreadable image, raise its `BadImage`, or take the next image in the order.
        bad_limit: share of the images above which "skip" raises; a single one is always skipped.
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
        more: Sequence[Transform] = (),
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
        balance: float = 0.0,
        shuffle: str = "full",
        image_bytes: int = 0,
        finish: Finishing = "image",
        on_bad: OnBad = "error",
        bad_limit: float = 0.001,
        pin_memory: bool = False,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise ValueError(
                f"data.batch_size must be a multiple of GPUs x accumulation; got batch_size={batch_size},"
                f" {world_size} GPUs, accumulate={accumulate}."
            )
        if len(dataset) < batch_size:
            raise ValueError(
                f"The training set has {len(dataset)} images, fewer than one batch of {batch_size}."
            )
        share = batch_size // (world_size * accumulate)
        if mix and share % 2:
            raise ValueError(
                "data.mix pairs images, so each GPU needs an even number per micro-batch; got"
                f" batch_size={batch_size}, {world_size} GPUs, accumulate={accumulate}: {share}."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.workers = workers
        self._result_bytes = image_bytes * share
        self.pin_memory = pin_memory
        self.steps_per_epoch = len(dataset) // batch_size
        self.samples_per_epoch = self.steps_per_epoch * batch_size
        wide = dataset.info.wide
        if group > 1 and (wide is None or (batch_size // accumulate) % group or repeats > 1):
            raise ValueError(
                f"data.group needs a set with known image sizes, and divides a batch without repeats; got"
                f" group={group}, batch_size={batch_size}, accumulate={accumulate}, repeats={repeats}; data.group=1"
                " batches images of any orientation."
            )
        weights = None
        if balance:
            strata = dataset.info.strata
            if strata is None or group > 1:
                raise ValueError(
                    "data.balance draws images by their class: it needs a set of images with classes, and"
                    f" data.group=1; got a set to {dataset.info.kind}, group={group}."
                )
            weights = balancing(strata, balance)
        order = Order(
            len(dataset),
            repeats,
            seed,
            wide=wide,
            group=group,
            micro=batch_size // accumulate,
            weights=weights,
            shuffle=shuffle,
            shards=dataset.info.shards,
        )
        self._prepare = PrepareTrain(
            Reader(dataset, transform, on_bad, dataset.info.channels),
            order,
            batch_size,
            accumulate,
            rank,
            world_size,
            bucket,
            more,
            finish,
        )
        self._bad = BadCount(on_bad, bad_limit, len(dataset))
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
        self._stream = stream = Stream(self._prepare, jobs, self.workers, self.pin_memory, self._result_bytes)
        while stream is self._stream:
            yield [self._bad.check(next(stream)) for _ in range(self.accumulate)]

    def close(self) -> None:
        """Stop the workers; iterators handed out before end."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
