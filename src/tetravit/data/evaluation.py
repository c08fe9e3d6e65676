"""Evaluation batches: every image once, in the order of the data set."""

from collections.abc import Iterator, Sequence

import numpy as np

from tetravit.data.build import build_dataset, resolve_workers
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.parts import Part
from tetravit.data.prepare import BadCount, OnBad, PrepareEval, Reader, Transform
from tetravit.data.preprocess import eval_transform, scaled
from tetravit.data.stream import Stream
from tetravit.data.subset import Subset
from tetravit.structures import Batch, Preprocess


def make_eval_loader(
    config: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    split: Part = "val",
    class_names: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    scales: Sequence[float] = (1.0,),
    images: int | None = None,
    pin_memory: bool = False,
) -> "EvalLoader":
    """Evaluation batches of one rank for a config; `preprocess` overrides that of the config.

    class_names: classes of a model; labels follow their order. Empty: the set's own. scales: image sizes for
    multi-scale evaluation, as factors on the limits of the preprocessing; the first gives a batch's images, the
    others its `views`. images: number of images, evenly spaced over the set; None: all.

    Raises:
        ValueError: for a setting that is not available.
    """
    dataset = build_dataset(config, split, class_names=class_names)
    if images is not None and images < len(dataset):
        dataset = Subset(dataset, np.linspace(0, len(dataset) - 1, images).round().astype(np.int64))
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


class EvalLoader:
    """The images of this rank, each once, in order: positions rank, rank + world_size, ...

    Unreadable images are errors, or are skipped and listed in `bad`. The arguments are those of `TrainLoader`;
    `batch_size` is that of this rank, and the last batch may be smaller. more: further transforms of the same images,
    which give the `views` of a batch.
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
        self._prepare = PrepareEval(Reader(dataset, transform, on_bad, dataset.info.channels), more)
        self._bad = BadCount(on_bad, bad_limit, self.total)

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
