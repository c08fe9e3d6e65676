"""A tiny job for engine tests: a convolutional classifier with BatchNorm and dropout, images drawn by index."""

from collections.abc import Iterator
from pathlib import Path

import torch
from task_toys import described
from torch import nn

from tetravit.engine import optim
from tetravit.engine.checkpoint import Checkpoints
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.log import JsonLines, Reporters
from tetravit.engine.loop import Job
from tetravit.engine.schedule import warmup_cosine
from tetravit.protocols import Loaders
from tetravit.protocols.accuracy import Accuracy
from tetravit.seeds import mixed
from tetravit.structures import Batch
from tetravit.tasks.classify import Classify, ClassifyConfig
from tetravit.world import World

CLASSES = 3


class ToyModel(nn.Module):
    num_classes = CLASSES

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)  # BatchNorm takes any bias away
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))


def picture(index: int) -> tuple[torch.Tensor, int]:
    """Image `index` of the toy set: noise, brighter for higher classes."""
    label = index % CLASSES
    noise = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(index))
    return noise + label, label


def batch(indices: list[int]) -> Batch:
    images, labels = zip(*(picture(i) for i in indices), strict=True)
    return Batch(
        torch.stack(images), torch.tensor(labels), names=[f"toy/{i}" for i in indices], indices=indices
    )


class ToyLoader:
    """The global batch of step t is a function of t; each rank takes its share, in micro-batches."""

    def __init__(self, size=8, accumulate=1, rank=0, world_size=1, steps_per_epoch=5, spoil=None):
        self.size, self.accumulate, self.rank, self.world_size = size, accumulate, rank, world_size
        self.steps_per_epoch = steps_per_epoch
        self.spoil = spoil or {}  # {step: value}: put into one pixel

    def batches(self, start: int) -> Iterator[list[Batch]]:
        step = start
        while True:
            generator = torch.Generator().manual_seed(mixed(7, step))
            drawn = torch.randint(0, 60, (self.size,), generator=generator).tolist()
            parts = self.accumulate * self.world_size
            share = self.size // parts
            chunks = [drawn[i * share : (i + 1) * share] for i in range(parts)]
            mine = [batch(c) for c in chunks[self.rank * self.accumulate : (self.rank + 1) * self.accumulate]]
            if step in self.spoil:
                mine[-1].images[0, 0, 0, 0] = self.spoil[step]
            yield mine
            step += 1


class ToyValidation:
    total = 12

    def __iter__(self):
        yield batch(list(range(100, 106)))
        yield batch(list(range(106, 112)))


def toy_job(
    run_dir: Path | None, *, steps=40, loader=None, resume="latest", optimizer="adamw", **options
) -> Job:
    """A job with everything switched on; `options` go to `RunConfig` and `Job`."""
    torch.manual_seed(0)
    known = {k: options.pop(k) for k in list(options) if k in RunConfig.model_fields}
    config = RunConfig(**{"log_steps": 3, "save_epochs": 0, "save_minutes": 0.0, "keep": 2, **known})
    loader = loader or ToyLoader(accumulate=config.accumulate)
    task = Classify(
        ToyModel(options.pop("dropout", 0.1)), ClassifyConfig(label_smoothing=0.1), described(CLASSES)
    )
    settings = optim.OptimConfig(name=optimizer, lr=0.01, lr_batch=0)
    checkpoints = None
    if run_dir is not None:
        run_dir.mkdir(exist_ok=True, parents=True)
        checkpoints = Checkpoints(run_dir, run_id="toy", keep=config.keep, on_full=config.on_full)
        checkpoints.prepare()
        options.setdefault("reporters", Reporters([JsonLines(run_dir)]))
    validation, world = options.pop("validation", ToyValidation()), options.pop("world", World())
    return Job(
        task=task,
        loader=loader,
        optimizer=optim.build(task, settings),
        rate=lambda step: warmup_cosine(step, total=steps, warmup=5, peak=0.01, floor=1e-4),
        total_steps=steps,
        config=config,
        ema=Ema(task.model, 0.9),
        clip=options.pop("clip", 1.0),
        protocol=Accuracy(),
        loaders=None if validation is None else Loaders(validation, task.data, world=world),
        checkpoints=checkpoints,
        resume=checkpoints.latest() if checkpoints and resume else None,
        world=world,
        **options,
    )
