"""Work of a data loader worker: decode, transform and collate the batch of a job.

A batch depends only on the seed and the step of its job, not on earlier jobs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from tetravit.data.collate import collate, collate_view, to_send
from tetravit.data.datasets import Dataset
from tetravit.data.decode import BadImage, to_channels
from tetravit.data.geometry import Boxes, Masks
from tetravit.data.order import Order, mixed_seed
from tetravit.data.storage import StorageError
from tetravit.structures import Batch, Finish, Sample, Target

LOG = logging.getLogger("tetravit.data")
Transform = Callable[..., Any]
OnBad = Literal["error", "skip"]
Finishing = Literal["image", "batch", "device"]
MAX_TRIES = 100  # unreadable images in a row after which the loader gives up


@dataclass
class Result:
    """A batch or an error, and the images that were skipped."""

    batch: Batch | None
    bad: list[BadImage]
    error: ValueError | OSError | None = None

    def pin_memory(self) -> Self:
        return replace(self, batch=self.batch and self.batch.pin_memory())


class BadCount:
    """Collects unreadable images; raises if there are too many."""

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


class Reader:
    """Reads samples with a number of image channels, and holds their transforms."""

    def __init__(self, dataset: Dataset, transform: Transform, on_bad: OnBad, channels: int = 3) -> None:
        self.dataset = dataset
        self.channels = channels
        self.transform = transform
        self.on_bad = on_bad

    def try_read(self, index: int, bad: list[BadImage]) -> Sample | None:
        """The raw sample; None, and a new entry in `bad`, if it is unreadable and may be skipped."""
        try:
            sample = self.dataset[index]
            sample.image = to_channels(sample.image, self.channels, sample.name)
            return sample
        except BadImage as error:
            if self.on_bad == "error":
                raise
            bad.append(error)
            return None


class PrepareTrain:
    """(step, micro-batch) -> this rank's share of it.

    more: further transforms of the same images, which give the `views` of the batch. finish: where images are
    normalized and erased: per "image" by its transforms; per "batch", with equal values in less time; or on the
    "device", by `Batch.to`. For the last two the transforms are `Augment`s.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        bucket: int = 1,
        more: Sequence[Transform] = (),
        finish: Finishing = "image",
    ) -> None:
        self.reader = reader
        self.more = more
        self.finish = finish
        self.bucket = bucket
        self.order = order
        self.batch_size = batch_size
        self.steps_per_epoch = order.size // batch_size
        self.micro_size = batch_size // accumulate
        self.rank = rank
        self.world_size = world_size

    def __call__(self, job: tuple[int, int]) -> Result:
        step, micro = job
        epoch, step = divmod(step, self.steps_per_epoch)
        first = step * self.batch_size + micro * self.micro_size
        bad: list[BadImage] = []
        samples, indices = [], []
        transforms = [
            _Now(t) if self.finish == "image" else _Later(t) for t in (self.reader.transform, *self.more)
        ]
        first_view, *more = transforms
        views: list[list[Tensor]] = [[] for _ in more]
        try:
            with _own_randomness() as reseed:
                for k in range(first + self.rank, first + self.micro_size, self.world_size):
                    sample, index = self._read(epoch, k, bad)
                    reseed(mixed_seed(self.order.seed, epoch, k))
                    samples.append(first_view.sample(sample))
                    indices.append(index)
                    for number, (view, transform) in enumerate(zip(views, more, strict=True), start=1):
                        reseed(mixed_seed(self.order.seed, epoch, k, number))
                        view.append(transform.image(sample.image))
            batch = collate(samples, indices, self.bucket)
            batch.finish = first_view.finish()
            batch.views = [collate_view(view) for view in views]
            for one, transform in zip(batch.views, more, strict=True):
                one.finish = transform.finish()
            if self.finish == "batch":
                _finish(batch)
            return Result(batch, bad)
        except (ValueError, StorageError) as error:  # includes BadImage; re-raised in the parent
            return Result(None, bad, error)

    def _read(self, epoch: int, k: int, bad: list[BadImage]) -> tuple[Sample, int]:
        for shift in range(min(self.order.size, MAX_TRIES)):
            index = self.order.image(epoch, k, shift)
            sample = self.reader.try_read(index, bad)
            if sample is not None:
                return sample, index
        raise bad[-1]


def _finish(batch: Batch) -> None:
    """Normalize and erase in the worker, as `Batch.to` does on the device."""
    for part in (batch, *batch.views):
        assert part.finish is not None
        out = to_send(part.images.shape, torch.float32)
        part.images, part.finish = part.finish(part.images, part.sizes, out), None


class _Now:
    """Fully transformed images of a batch."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def sample(self, sample: Sample) -> Sample:
        return transformed(sample, self.transform)

    def image(self, image: Tensor) -> Tensor:
        result: Tensor = self.transform(image)
        return result

    def finish(self) -> Finish | None:
        return None


class _Later(_Now):
    """uint8 images of a batch; their remaining steps are collected for the whole batch."""

    def __init__(self, augment: Any) -> None:
        super().__init__(augment.on_pixels)
        self.augment = augment
        self.drawn: list[Any] = []

    def sample(self, sample: Sample) -> Sample:
        sample = super().sample(sample)
        self.drawn.append(self.augment.patches(sample.image))
        return sample

    def image(self, image: Tensor) -> Tensor:
        image = super().image(image)
        self.drawn.append(self.augment.patches(image))
        return image

    def finish(self) -> Finish:
        result: Finish = self.augment.finished(self.drawn)
        return result


class PrepareEval:
    """Indices -> a batch of the readable ones.

    more: further transforms of the same images, which give the `views` of the batch.
    """

    def __init__(self, reader: Reader, more: Sequence[Transform] = ()) -> None:
        self.reader = reader
        self.more = more

    def __call__(self, job: Sequence[int]) -> Result:
        bad: list[BadImage] = []
        samples, indices = [], []
        views: list[list[Tensor]] = [[] for _ in self.more]
        try:
            for index in job:
                sample = self.reader.try_read(index, bad)
                if sample is not None:
                    for view, transform in zip(views, self.more, strict=True):
                        view.append(transform(sample.image))
                    sample.image = self.reader.transform(sample.image)
                    samples.append(sample)
                    indices.append(index)
            batch = collate(samples, indices) if samples else Batch(torch.empty(0))
            if samples:
                batch.views = [collate_view(view) for view in views]
            return Result(batch, bad)
        except (ValueError, StorageError) as error:
            return Result(None, bad, error)


def transformed(sample: Sample, transform: Transform) -> Sample:
    """Apply `transform` to the image and, geometrically, to its label map, boxes and masks.

    Objects cropped away entirely are removed.
    """
    target = sample.target
    if isinstance(target, Tensor) and target.ndim == 2:  # (Hi, Wi)
        image, labels = transform(sample.image, Masks(target))
        return replace(sample, image=image, target=labels.values)
    if isinstance(target, Target):
        height, width = sample.image.shape[-2:]
        shapes = None if target.masks is None else Masks(target.masks)
        image, moved, shapes = transform(sample.image, Boxes(target.boxes, (height, width)), shapes)
        boxes, masks = moved.values, None if shapes is None else shapes.values
        kept = (boxes[:, 2:] - boxes[:, :2] > 0).all(dim=1)
        return replace(sample, image=image, target=_objects(replace(target, boxes=boxes, masks=masks), kept))
    return replace(sample, image=transform(sample.image))


def _objects(target: Target, kept: Tensor) -> Target:
    """The objects of a target selected by `kept` (M,)."""
    parts = {name: getattr(target, name) for name in ("boxes", "labels", "masks", "crowd", "area")}
    return replace(target, **{name: part[kept] for name, part in parts.items() if part is not None})


@contextmanager
def _own_randomness() -> Iterator[Callable[[int], Any]]:
    """Yield a function that seeds torch's global generator by `seed(n)`; its state is restored afterwards."""
    state = torch.get_rng_state()
    try:
        yield torch.default_generator.manual_seed
    finally:
        torch.set_rng_state(state)
