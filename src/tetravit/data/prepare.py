"""What happens in a worker: a job becomes a batch, read, transformed and put together.

Nothing here depends on what was done before: a job names a step, and the seed and the step decide the rest.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from tetravit.data.datasets import Dataset
from tetravit.data.decode import BadImage
from tetravit.structures import Batch, Sample, Target

Transform = Callable[..., Any]
OnBad = Literal["error", "skip"]
MAX_TRIES = 100  # images in a row; where all are unreadable, the disk is gone


@dataclass
class Result:
    """A batch, or the reason why there is none; and the images that were passed over."""

    batch: Batch | None
    bad: list[BadImage]
    error: ValueError | None = None

    def pin_memory(self) -> Self:
        return replace(self, batch=self.batch and self.batch.pin_memory())


class Order:
    """Which image stands at position k of epoch e.

    wide: which images are wider than high; None: that does not matter. group: how many images of one kind then
    stand together: those at the same place of the `group` equal parts of every `micro` positions, so that ranks,
    which take every so-manyth position, get whole groups. A kind whose number does not divide ends in a mixed group.
    """

    def __init__(
        self,
        size: int,
        repeats: int,
        seed: int,
        *,
        wide: np.ndarray | None = None,
        group: int = 1,
        micro: int = 1,
    ) -> None:
        self.size = size
        self.repeats = repeats
        self.seed = seed
        self.wide, self.group, self.micro = wide, group, micro
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def image(self, epoch: int, position: int, shift: int = 0) -> int:
        """Number of the image; `shift` > 0: of the image drawn that many places later."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, -1))
            self._permutation, self._epoch = self._drawn(generator), epoch
        return int(self._permutation[(position // self.repeats + shift) % self.size])

    def _drawn(self, generator: torch.Generator) -> np.ndarray:
        """The images of an epoch in order."""
        drawn = torch.randperm(self.size, generator=generator).numpy()
        if self.wide is None or self.group == 1:
            return drawn
        kinds = [drawn[self.wide[drawn] == kind] for kind in (True, False)]
        whole = [kind[: len(kind) // self.group * self.group] for kind in kinds]
        groups = np.concatenate(whole).reshape(-1, self.group)
        groups = groups[torch.randperm(len(groups), generator=generator).numpy()]
        rest = np.concatenate([kind[len(part) :] for kind, part in zip(kinds, whole, strict=True)])
        line = np.concatenate((groups.reshape(-1), rest))
        whole_steps = len(line) // self.micro * self.micro
        spread = line[:whole_steps].reshape(-1, self.micro // self.group, self.group).swapaxes(1, 2)
        return np.concatenate((spread.reshape(-1), line[whole_steps:]))


def mixed_seed(*numbers: int) -> int:
    """A well-mixed 63-bit seed from several integers."""
    text = "/".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Reader:
    """Reads samples, and holds what transforms them."""

    def __init__(self, dataset: Dataset, transform: Transform, on_bad: OnBad) -> None:
        self.dataset = dataset
        self.transform = transform
        self.on_bad = on_bad

    def try_read(self, index: int, bad: list[BadImage]) -> Sample | None:
        """The sample as the data set has it; None, and a new entry in `bad`, where it may be passed over."""
        try:
            return self.dataset[index]
        except BadImage as error:
            if self.on_bad == "error":
                raise
            bad.append(error)
            return None


class PrepareTrain:
    """(step, micro-batch) -> this rank's share of it."""

    def __init__(
        self,
        reader: Reader,
        order: Order,
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        bucket: int = 1,
    ) -> None:
        self.reader = reader
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
        try:
            with _own_randomness() as reseed:
                for k in range(first + self.rank, first + self.micro_size, self.world_size):
                    sample, index = self._read(epoch, k, bad)
                    reseed(mixed_seed(self.order.seed, epoch, k))
                    samples.append(transformed(sample, self.reader.transform))
                    indices.append(index)
            return Result(collate(samples, indices, self.bucket), bad)
        except ValueError as error:  # BadImage too: carried to the parent as it is
            return Result(None, bad, error)

    def _read(self, epoch: int, k: int, bad: list[BadImage]) -> tuple[Sample, int]:
        for shift in range(min(self.order.size, MAX_TRIES)):
            index = self.order.image(epoch, k, shift)
            sample = self.reader.try_read(index, bad)
            if sample is not None:
                return sample, index
        raise bad[-1]


class PrepareEval:
    """Indices -> a batch of those that can be read.

    more: transforms of the same images, whose results are the `views` of the batch.
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
                batch.views = [_together(view) for view in views]
            return Result(batch, bad)
        except ValueError as error:
            return Result(None, bad, error)


def transformed(sample: Sample, transform: Transform) -> Sample:
    """The sample after `transform`; label map, boxes and masks follow the image.

    Objects of which nothing is left go.
    """
    target = sample.target
    if isinstance(target, Tensor):  # (Hi, Wi)
        image, labels = transform(sample.image, tv_tensors.Mask(target))
        return replace(sample, image=image, target=labels.as_subclass(Tensor))
    if isinstance(target, Target):
        height, width = sample.image.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
            target.boxes, format="XYXY", canvas_size=(height, width)
        )
        masks = None if target.masks is None else tv_tensors.Mask(target.masks)
        image, boxes, masks = transform(sample.image, boxes, masks)
        boxes = boxes.as_subclass(Tensor)
        masks = None if masks is None else masks.as_subclass(Tensor)
        kept = (boxes[:, 2:] - boxes[:, :2] > 0).all(dim=1)
        return replace(sample, image=image, target=_objects(replace(target, boxes=boxes, masks=masks), kept))
    return replace(sample, image=transform(sample.image))


def _objects(target: Target, kept: Tensor) -> Target:
    """Those objects of a target that `kept` (M,) marks."""
    parts = {name: getattr(target, name) for name in ("boxes", "labels", "masks", "crowd", "area")}
    return replace(target, **{name: part[kept] for name, part in parts.items() if part is not None})


def collate(samples: Sequence[Sample], indices: Sequence[int], bucket: int = 1) -> Batch:
    """Samples -> a batch. Class indices, and label maps of one size, become a tensor; other targets stay a list.

    Images of a dense task that differ in size are filled up with zeros right and below, all of them to sides that are
    multiples of `bucket`; `sizes` tells the truth.

    Raises:
        ValueError: if images with a class each differ in size.
    """
    shapes = {tuple(s.image.shape) for s in samples}
    targets: Any = [s.target for s in samples]
    dense = isinstance(targets[0], (Tensor, Target))
    if len(shapes) > 1 and not dense:
        a, b = sorted(shapes)[:2]
        raise ValueError(
            f"The images of a batch must have one size; got {a} and {b}. Let data.augment crop or resize."
        )
    if isinstance(targets[0], int):
        targets = torch.tensor(targets)
    elif isinstance(targets[0], Tensor) and len({t.shape for t in targets}) == 1:
        targets = torch.stack(targets)
    images, sizes = [s.image for s in samples], None
    if dense and (len(shapes) > 1 or any(side % bucket for shape in shapes for side in shape[1:])):
        sizes = torch.tensor([image.shape[-2:] for image in images])
        images = _filled_up(images, bucket)
    return Batch(torch.stack(images), targets, sizes, [s.name for s in samples], list(indices))


def _together(images: Sequence[Tensor]) -> Batch:
    """Images (C, Hi, Wi) of any sizes -> a batch of them, without targets."""
    if len({image.shape for image in images}) == 1:
        return Batch(torch.stack(list(images)))
    sizes = torch.tensor([image.shape[-2:] for image in images])
    return Batch(torch.stack(_filled_up(images, 1)), sizes=sizes)


def _filled_up(images: Sequence[Tensor], bucket: int) -> list[Tensor]:
    """Images (C, Hi, Wi) with zeros right and below, all as large as the largest, in whole buckets."""
    height, width = (-(-max(image.shape[side] for image in images) // bucket) * bucket for side in (1, 2))
    return [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]


@contextmanager
def _own_randomness() -> Iterator[Callable[[int], Any]]:
    """Hand out `seed(n)` for torch's global generator; afterwards the generator is as it was."""
    state = torch.get_rng_state()
    try:
        yield torch.default_generator.manual_seed
    finally:
        torch.set_rng_state(state)
