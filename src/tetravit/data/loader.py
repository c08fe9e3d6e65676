"""Training batches in an order that depends on the seed only.

Position and augmentation of sample k of epoch e are functions of (seed, e, k). Batches are therefore the same for any
number of workers, any number of ranks (as a union), and any starting step: resuming needs only the step number.
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
    """Training batches for a config; `dataset`: its training set, if already built.

    views: augmentations of all views of an image, replacing that of the config; the first gives the images of a
    batch, the others its `views`. None: one view, from the config.
    finish_later: workers send uint8 images, and `Batch.to` normalizes and erases on the device with equal results;
    only if the augmentations allow it.

    Raises:
        ValueError: for a setting that is not available.
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
    """Training batches for a classifier on frozen features: augmented by `text`, without mixing.

    A set smaller than a batch is one batch. preprocess: of the model, for size and normalization. class_names: of the
    model, as in `make_eval_loader`. ranks: `rank`, `world_size`, `pin_memory` of `TrainLoader`.

    Raises:
        ValueError: for a setting that is not available.
    """
    changes = {"image_size": preprocess.size, "mean": preprocess.mean, "std": preprocess.std, "augment": text}
    plain = {"mix": None, "balance": 0.0, "repeats": 1, "group": 1, "bucket": 1}
    dataset, share = build_dataset(config, "train", class_names=class_names), ranks.get("world_size", 1)
    batch = min(batch_size, len(dataset)) // share * share or batch_size
    config = config.model_copy(update={**changes, **plain, "batch_size": batch})
    return make_train_loader(config, seed=seed, dataset=dataset, **ranks)


def image_bytes(config: DataConfig, images: int, finish: Finishing = "image") -> int:
    """Approximate bytes per image sent by a worker, in a batch of `images`."""
    height, width = config.canvas(images)
    return (1 if finish == "device" else 4) * (config.channels or 3) * height * width


class TrainLoader:
    """Endless training batches of one rank, from any step.

    Args:
        dataset: the images.
        transform: image uint8 (C, Hi, Wi) -> float tensor; draws from torch's global generator only.
        more: further transforms of the same decoded image; their results are the `views` of a batch, in order. View v
            of a sample depends on (seed, epoch, position, v) only: adding views does not change the others.
        batch_size: images per optimizer step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches per step.
        repeats: repeated augmentation (Hoffer et al. 2020): augmented copies of each sampled image, adjacent in the
            order; an epoch has as many samples as the set has images, from a 1 / repeats part of them.
        group: images per group of one orientation, all landscape or none, to reduce padding; the set's `wide` gives
            the orientations. Ranks get whole groups if their number divides the groups of a micro-batch.
        bucket: the sides of a padded batch are multiples of this, in pixels.
        seed: of order and augmentations.
        rank, world_size: this rank gets positions rank, rank + world_size, ... of every micro-batch.
        workers: processes that prepare batches; 0: the calling process.
        balance: class-balanced sampling: 0 natural frequencies, each image once per epoch; 1 all classes equally
            often; between them by a power of the image counts. Above 0, images are sampled with replacement.
        shuffle: "full", "shards(N)" or "table"; see `Order`.
        image_bytes: approximate bytes of a prepared image with its views; 0: unknown.
        finish: where images are normalized and erased; see `PrepareTrain`.
        mix: specification of mixup and cutmix, which need an even number of images.
        on_bad: for an unreadable image, raise `BadImage` or use the next image in the order.
        bad_limit: share of unreadable images above which "skip" raises; a single one is always skipped.
        pin_memory: put batches in page-locked memory.

    `bad` maps the names of skipped images to the causes.

    Raises:
        ValueError: if the batch size is not divisible, the set is smaller than a batch, or `mix` gets an odd number
        of images.
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
        """Micro-batches from step `start` on, endless, across epochs.

        Raises:
            BadImage: for an unreadable image, with on_bad "error".
            ValueError: if more images are unreadable than allowed, or those of a batch differ in size.
        """
        self.close()
        jobs = ((step, micro) for step in itertools.count(start) for micro in range(self.accumulate))
        self._stream = stream = Stream(self._prepare, jobs, self.workers, self.pin_memory, self._result_bytes)
        while stream is self._stream:
            yield [self._bad.check(next(stream)) for _ in range(self.accumulate)]

    def close(self) -> None:
        """Stop the workers; existing iterators end."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
