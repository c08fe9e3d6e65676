"""A recipe for the training loop of another library: task, batches, optimizer, schedules, EMA and scores.

A step is the same function of the recipe and the step number as in `tetravit.train`, so losses on one process are
bitwise equal. The other library runs the loop, moves tensors between processes and writes checkpoints.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tetravit.data.loader import TrainLoader
from tetravit.engine import optim
from tetravit.engine.clipping import clipped
from tetravit.engine.ema import Ema
from tetravit.engine.guard import Guard, NotFinite
from tetravit.engine.strategies.parts.norms import share_norms
from tetravit.protocols import Loaders
from tetravit.recipe import Recipe, dump, find, loads
from tetravit.recipe import load as load_recipe
from tetravit.recipe_tables import as_overrides
from tetravit.runs.build import build, evaluation_loaders, places_of
from tetravit.runs.folder import write_weights
from tetravit.seeds import micro_batch, number_layers, seed_step
from tetravit.structures import Batch
from tetravit.tasks.base import Progress
from tetravit.world import World

Weights = Literal["raw", "ema"]


def read_recipe(source: str | Path | Recipe, overrides: dict[str, Any]) -> Recipe:
    """A recipe by name, file, TOML text (of several lines) or as an object, with overrides as in `tetravit.train`.

    Raises:
        ValueError: in one line, for an unknown or impossible setting.
    """
    changes = as_overrides(overrides)
    if isinstance(source, Recipe):
        return loads(dump(source), changes) if changes else source
    if isinstance(source, str) and "\n" in source:
        return loads(source, changes)
    return load_recipe(find(source), changes)


@dataclass
class Micro:
    """One micro-batch. index: number of the step; `step`: all micro-batches of this rank in that step."""

    batch: Batch
    index: int
    step: Sequence[Batch]

    def to(self, device: torch.device, memory_format: torch.memory_format | None) -> "Micro":
        """The same with its images on `device`; targets of the other micro-batches stay on their device."""
        return Micro(self.batch.to(device, memory_format), self.index, self.step)


class RecipeRun:
    """The objects built from a recipe, and the functions around a step.

    Args:
        recipe: its `[run]` keys for strategy, saving and logging are ignored: the other library does these.

    Call `begin` first, after the process group exists.

    Raises:
        ValueError: for an impossible setting of the recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.objects = build(recipe, World())
        self.objects.ema = None  # created by `begin`, on the device of the weights
        self.recipe, self.task = self.objects.recipe, self.objects.task
        self.world = World()
        self.loader: TrainLoader = self.objects.loader
        self.loaders: Loaders | None = self.objects.loaders
        self.ema: Ema | None = None
        self._guard: Guard | None = None
        self.slots = number_layers(self.task)

    @property
    def accumulate(self) -> int:
        """Micro-batches of one step."""
        return self.recipe.run.accumulate

    @property
    def total_steps(self) -> int:
        return self.objects.total_steps

    @property
    def memory_format(self) -> torch.memory_format | None:
        return torch.channels_last if self.recipe.run.memory_format == "channels_last" else None

    def enter(self, device: torch.device, rank: int, size: int) -> None:
        """Take this process's share of the data; the process group exists where there are several.

        Raises:
            ValueError: if the batch size is not divisible by the number of processes.
        """
        control = dist.new_group(backend="gloo") if size > 1 else None
        self.world = World(device, rank, size, control)
        recipe, seed, later = self.recipe, self.recipe.run.seed, device.type == "cuda"
        self.loader.close()
        self.loader = self.objects.with_seed(seed=seed, finish_later=later, **places_of(self.world))
        if self.loaders is not None:
            self.loaders = evaluation_loaders(recipe, self.objects.info, self.objects.protocol, self.world)
        if size > 1:
            share_norms(self.task, device)
        if recipe.run.compile:
            self.task.model.compile()

    def begin(self) -> None:
        """Start the EMA of the weights on their device, and copies of buffers to restore after bad steps."""
        settings, self._guard = self.recipe.optim, Guard(self.task, self.world.device, lag=0)
        if settings.ema and self.ema is None:
            self.ema = Ema(self.task.model, settings.ema, settings.ema_warmup)

    def progress(self, step: int) -> Progress:
        return Progress(step, self.total_steps, self.loader.steps_per_epoch)

    @contextmanager
    def around(self, micro: Micro, step: int) -> Iterator[None]:
        """Context of a micro-batch's forward and backward pass: its random state, and loss scaling over a step."""
        seed, world = self.recipe.run.seed, self.world
        if micro.index == 0 and self._guard is not None:
            self._guard.before(step)
        seed_step(seed, step, micro.index, world.rank)
        ranks: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "device": world.device}
        with ExitStack() as stack:
            stack.enter_context(
                micro_batch(seed, step, micro.index, rows=len(micro.batch), slots=self.slots, **ranks)
            )
            stack.enter_context(self.task.whole_step(micro.step, world.gather))
            yield

    def optimizer(self) -> Optimizer:
        """The optimizer of the recipe over the trainable parameters."""
        return optim.build(self.task, self.recipe.optim)

    def schedule(self, optimizer: Optimizer) -> "RecipeSchedule":
        """Sets the learning rate and the other scheduled settings; call `step()` after each optimizer step."""
        return RecipeSchedule(optimizer, self)

    def before_update(self, optimizer: Optimizer, step: int, loss: Tensor, names: Sequence[str]) -> Tensor:
        """Clip gradients, and raise before a non-finite value reaches the weights; returns the norm.

        Raises:
            NotFinite: on every rank, if the loss or a gradient on any rank is not finite.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        settings, joint = self.recipe.optim, [list(group) for group in self.task.joint_clip()]
        norm = clipped(parameters, gradients, settings.clip, settings.clip_by, joint)
        self.task.before_update(self.progress(step))
        bad = [not bool(loss.isfinite()), not bool(norm.isfinite())]
        if any(self.world.any(*bad)):
            if self._guard is not None:
                self._guard.restore(step)
            rows = self.world.gather((bad, list(names)))
            quantity = "loss" if any(row[0] for row, _ in rows) else "gradient"
            raise NotFinite(step, quantity, [name for row, part in rows if any(row) for name in part])
        return norm

    def after_update(self, step: int) -> None:
        """Update the EMA of the weights and the other state of the task."""
        if self.ema is not None:
            self.ema.update(step)
        good = torch.ones((), dtype=torch.bool, device=self.task.device)
        self.task.after_update(self.progress(step), good)

    def scores(self) -> dict[str, float]:
        """Scores of the recipe's protocol over all ranks; those of the EMA weights are prefixed with "ema_"."""
        if self.loaders is None:
            return {}
        values: dict[str, float] = {}
        sets = [("", nullcontext())] + ([("ema_", self.ema.applied())] if self.ema is not None else [])
        training = self.task.training
        self.task.eval()
        try:
            for prefix, weights in sets:
                with weights, torch.no_grad():
                    scored = self.objects.protocol.score(self.task.weights(), self.loaders)
                values |= {f"{prefix}{name}": value for name, value in scored.values.items()}
        finally:
            self.task.train(training)
        return values

    def save(self, path: str | Path, weights: Weights, step: int) -> None:
        """Write a weights file that `tetravit.load` reads; on rank 0.

        Raises:
            ValueError: for EMA weights of a recipe without an EMA.
        """
        if weights not in ("raw", "ema"):
            raise ValueError(f"weights is 'raw' or 'ema'; got {weights!r}.")
        if weights == "ema" and self.ema is None:
            raise ValueError(
                "There are no averaged weights: optim.ema is 0, or nothing was trained yet; use weights='raw'."
            )
        if not self.world.is_main:
            return
        with self.ema.applied() if weights == "ema" and self.ema is not None else nullcontext():
            write_weights(Path(path).parent, self.objects, Path(path).name, f"step {step}, {weights} weights")


class RecipeSchedule(LRScheduler):
    """The learning rate of a recipe and its other schedules, as a scheduler of torch."""

    def __init__(self, optimizer: Optimizer, run: RecipeRun) -> None:
        self._rate, self._others = run.objects.rate, run.objects.schedules
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at step `last_epoch`; also sets the other scheduled settings."""
        step = self.last_epoch
        others = {name: value(step) for name, value in self._others.items()}
        optim.set_values(self.optimizer, self._rate(step), others)
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; the remaining state follows from the recipe."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self.get_lr()
