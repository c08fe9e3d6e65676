"""The loop: how steps are repeated, whatever the task. Read `fit` from top to bottom; it is the manual.

A step is a function of the recipe and of its number. Its images come from `loader.batches(start)`, its
randomness from (seed, step, micro-batch, rank), its learning rate from `rate(step)`. So a run that was cut
anywhere continues to the same bits: a checkpoint holds tensors, the step, and the half-filled means of the log.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from tetravit.engine import optim
from tetravit.engine.checkpoint import Checkpoint, Checkpoints
from tetravit.engine.ema import Ema
from tetravit.engine.guard import Guard, NotFinite
from tetravit.engine.log import Clock, Meter, Reporters, pooled
from tetravit.engine.precision import LossScale, Precision, autocast, chosen
from tetravit.engine.signals import Interrupted, Signals
from tetravit.engine.strategies import known_strategy, pick_strategy
from tetravit.seeds import seed_step
from tetravit.structures import Batch
from tetravit.tasks import Task
from tetravit.world import World


class RunConfig(BaseModel):
    """The `[run]` section of a recipe.

    device: auto, cpu, cuda, cuda:N or mps. accumulate: micro-batches that share one step.
    strategy: how several processes share the work; auto: single for one, ddp for more.
    kernels: `repeatable` asks torch for deterministic ones, `fastest` for any.
    log_steps: steps per line of the log. evaluate_epochs: epochs between evaluations; 0: only at the end.
    evaluate_steps: steps between evaluations, in place of epochs; 0: epochs count.
    save_steps, save_minutes, save_epochs: a checkpoint whenever one of them has passed; 0 switches it off.
    keep: how many checkpoints stay. on_full: what a failed save does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    precision: Precision = "auto"
    accumulate: int = Field(default=1, ge=1)
    strategy: str = "auto"
    compile: Literal["off", "on"] = "off"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    kernels: Literal["repeatable", "fastest"] = "repeatable"
    log_steps: int = Field(default=10, ge=1)
    evaluate_epochs: int = Field(default=1, ge=0)
    evaluate_steps: int = Field(default=0, ge=0)
    save_steps: int = Field(default=0, ge=0)
    save_minutes: float = Field(default=10.0, ge=0)
    save_epochs: int = Field(default=1, ge=0)
    keep: int = Field(default=3, ge=2)
    on_full: Literal["warn", "stop"] = "warn"

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, name: str) -> str:
        return name if name == "auto" else known_strategy(name)


class Loader(Protocol):
    """What gives the batches of a run: step `start`, `start + 1`, ... without end, each in micro-batches."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start: int) -> Iterator[list[Batch]]: ...


@dataclass
class Job:
    """Everything `fit` needs.

    rate: learning rate of a step, counted from 0. validation: what `task.score` reads; None: no evaluation.
    on_best: called when `task.watch` reaches a new best, while the model holds the weights that did.
    how_to_continue: the command that goes on after an interruption.
    """

    task: Task
    loader: Loader
    optimizer: Optimizer
    rate: Callable[[int], float]
    total_steps: int
    config: RunConfig = field(default_factory=RunConfig)
    world: World = field(default_factory=lambda: World(torch.device("cpu")))
    clip: float = 0.0
    ema: Ema | None = None
    validation: Any = None
    checkpoints: Checkpoints | None = None
    resume: Checkpoint | None = None
    reporters: Reporters = field(default_factory=lambda: Reporters([]))
    on_best: Callable[[dict[str, Any]], None] = lambda record: None
    on_log: Callable[[], None] = lambda: None
    how_to_continue: str = "run the same command again"


@dataclass
class Progress:
    """Where a run stands, between two steps. All of it is in a checkpoint.

    done: steps taken. evaluated: after how many steps the last evaluation was.
    """

    done: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int | None = None
    seconds: float = 0.0


def fit(job: Job) -> Progress:
    """Train until `total_steps`, from the checkpoint in `job.resume` or from the start.

    Raises:
        Interrupted: after a signal, once the step is finished and saved.
        NotFinite: if a loss or gradient is NaN or infinite; the weights are as before that step.
        OSError: if a checkpoint cannot be written and `config.on_full` is `stop`.
    """
    config, world, task = job.config, job.world, job.task
    device, total = world.device, job.total_steps
    precision = chosen(config.precision, device)
    memory_format = torch.channels_last if config.memory_format == "channels_last" else None
    scale = LossScale(device, active="yes" if precision == "fp16" else "no")
    meter = Meter(device)

    progress = _restore(job, scale, meter)
    if config.compile == "on":
        task.model.compile()
    wrapped = pick_strategy(config.strategy, world).wrap(task, world)
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    guard, clock = Guard(task, device), Clock(progress.seconds)
    saved_at, saved_step, logged_step = time.monotonic(), progress.done, progress.done
    task.train()

    with Signals() as signals:

        def save() -> None:
            nonlocal saved_at, saved_step
            if saved_step != progress.done:
                _check(job, guard, all_steps=True)
                progress.seconds = clock.seconds
                _save(job, progress, scale, meter)
            saved_at, saved_step = time.monotonic(), progress.done

        def stop() -> None:
            save()
            raise Interrupted(
                f"Stopped by {signals.received or 'another rank'} after step {progress.done} of {total}; "
                f"continue with: {job.how_to_continue}"
            )

        def evaluate() -> None:
            _check(job, guard, all_steps=True)
            try:
                _evaluate(job, progress, precision, signals)
            except _StoppedInside:
                stop()
            clock.skip()

        if _evaluation_due(job, progress):
            evaluate()
        batches = job.loader.batches(progress.done) if progress.done < total else iter(())

        for step in range(progress.done, total):
            optim.set_lr(job.optimizer, job.rate(step))
            guard.before(step)

            # Forward and backward, once per micro-batch; only the last one averages gradients over the ranks.
            micros = next(batches)
            losses: list[Tensor] = []
            for i, batch in enumerate(micros):
                batch = batch.to(device, memory_format)
                seed_step(config.seed, step, i, world.rank)
                last = i == len(micros) - 1
                with ExitStack() as stack:
                    if not last:
                        stack.enter_context(wrapped.no_sync())
                    with autocast(precision, device):
                        values = wrapped.module(batch)
                    scale.scaled(values["loss"] / len(micros)).backward()
                losses.append(values["loss"].detach())
                meter.add(values)
                clock.count(len(batch) * world.size)

            # Judge, then move the weights. Nothing here waits for a GPU.
            gradients = [p.grad for p in parameters if p.grad is not None]
            scale.unscale(gradients)
            norm = _clipped(parameters, gradients, job.clip)
            names = [name for batch in micros for name in batch.names]
            overflow = guard.after(
                step, torch.stack(losses).sum(), norm, names, job.optimizer, excuse=scale.excuse
            )
            minutes_up = config.save_minutes > 0 and time.monotonic() - saved_at > 60 * config.save_minutes
            stopping, saving = _check(job, guard, signals.received is not None, minutes_up)
            job.optimizer.step()
            torch.autograd.graph.increment_version(parameters)  # fused optimizers do not, and caches go by it
            scale.update(overflow)
            job.optimizer.zero_grad(set_to_none=True)
            if job.ema is not None:
                job.ema.update(step)
            task.after_step((step + 1) / total)
            progress.done = step + 1

            # Between two steps: log, save, leave, evaluate. In this order, so that leaving never waits.
            if progress.done % config.log_steps == 0 or progress.done == total:
                _log(job, progress, meter, clock, norm_of=step, steps=progress.done - logged_step)
                logged_step = progress.done
            if saving or stopping or _save_due(job, progress.done):
                save()
            if stopping and progress.done < total:
                stop()
            if _evaluation_due(job, progress):
                evaluate()

        _check(job, guard, all_steps=True)
    progress.seconds = clock.seconds
    return progress


class _StoppedInside(Exception):
    """A signal arrived during an evaluation."""


def _check(job: Job, guard: Guard, *flags: bool, all_steps: bool = False) -> list[bool]:
    """Agree over the ranks on `flags`; stop the run if a bad step has come to light on any of them."""
    fault = guard.found(all_steps=all_steps)
    bad, *agreed = job.world.any(fault is not None, *flags)
    if bad:
        faults = [f for f in job.world.gather(fault) if f is not None]
        step, what = faults[0][0], "loss" if any(f[1] == "loss" for f in faults) else "gradient"
        guard.restore(step)
        job.optimizer.zero_grad(set_to_none=True)
        raise NotFinite(step, what, [name for f in faults if f[1] == what for name in f[2]])
    return agreed


def _clipped(parameters: Sequence[Tensor], gradients: Sequence[Tensor], clip: float) -> Tensor:
    """The global norm of the gradient, which is brought down to `clip` where that is set."""
    norm = nn.utils.get_total_norm(gradients)
    if clip > 0:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def _log(job: Job, progress: Progress, meter: Meter, clock: Clock, *, norm_of: int, steps: int) -> None:
    """Tell the reporters the means since the last line, over all ranks."""
    window = pooled(job.world.gather(meter.take()))
    means = {name: total / window["count"] for name, total in window["sums"].items()}
    record = {
        "step": progress.done,
        "epoch": progress.done / job.loader.steps_per_epoch,
        "lr": job.rate(norm_of),
        **means,
        "timing": clock.look(job.total_steps - progress.done, steps),
    }
    job.reporters.step(record)
    job.on_log()


def _save_due(job: Job, done: int) -> bool:
    config, epoch = job.config, job.loader.steps_per_epoch
    by_step = config.save_steps > 0 and done % config.save_steps == 0
    by_epoch = config.save_epochs > 0 and done % (config.save_epochs * epoch) == 0
    return by_step or by_epoch or done == job.total_steps


def _evaluation_due(job: Job, progress: Progress) -> bool:
    """Also after a resume, where the checkpoint was written before the evaluation of its step."""
    done, config = progress.done, job.config
    every = config.evaluate_steps or config.evaluate_epochs * job.loader.steps_per_epoch
    wanted = done == job.total_steps or (every > 0 and done > 0 and done % every == 0)
    return wanted and job.validation is not None and progress.evaluated != done


def _evaluate(job: Job, progress: Progress, precision: Precision, signals: Signals) -> None:
    """Score the weights, and the averaged ones, on the validation set; keep the best."""
    task = job.task
    record: dict[str, Any] = {"step": progress.done, "epoch": progress.done / job.loader.steps_per_epoch}
    sets = [("", nullcontext())] + ([("ema_", job.ema.applied())] if job.ema is not None else [])
    bests: list[tuple[str, dict[str, float]]] = []
    start = time.perf_counter()
    best, best_step = progress.best, progress.best_step
    for prefix, weights in sets:
        with weights, _evaluating(task), autocast(precision, job.world.device):
            scores = task.score(_stoppable(job.validation, signals, job.world))
            value = scores.get(task.watch)
            if value is not None and (best is None or task.better(value, best)):
                best, best_step = value, progress.done
                bests.append((prefix, scores))
                job.on_best({**record, "weights": prefix.rstrip("_") or "raw", **scores})
        record |= {f"{prefix}{name}": value for name, value in scores.items()}
    progress.best, progress.best_step, progress.evaluated = best, best_step, progress.done
    record["timing"] = {"seconds": round(time.perf_counter() - start, 1)}
    job.reporters.evaluated(record)


@contextmanager
def _evaluating(task: Task) -> Iterator[None]:
    task.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        task.train()


class _Stoppable:
    """A loader that ends at the first signal. Alone only: several ranks finish the evaluation together."""

    def __init__(self, loader: Any, signals: Signals) -> None:
        self._loader, self._signals = loader, signals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._signals.received:
                raise _StoppedInside
            yield batch


def _stoppable(loader: Any, signals: Signals, world: World) -> Any:
    return _Stoppable(loader, signals) if world.size == 1 else loader


def _save(job: Job, progress: Progress, scale: LossScale, meter: Meter) -> None:
    """Write a checkpoint; rank 0 writes, the others give it their half-filled means."""
    windows = job.world.gather(meter.state())
    if job.checkpoints is None or not job.world.is_main:
        return
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": job.task.state_dict(),
        "optimizer": optim.pack(job.optimizer, job.task),
    }
    if job.ema is not None:
        tensors["ema"] = job.ema.state()
    state = {
        "progress": vars(progress),
        "windows": windows,
        "scale": scale.state(),
        "logs": job.reporters.mark(),
        "seed": job.config.seed,
    }
    job.checkpoints.save(progress.done, tensors, state)


def _restore(job: Job, scale: LossScale, meter: Meter) -> Progress:
    """Put a checkpoint back: weights, optimizer, average, the position, the log."""
    found = job.resume
    if job.world.is_main:
        # Also without a checkpoint: a run that was killed before its first one has written some lines.
        job.reporters.rewind(found.state["logs"] if found else None)
    if found is None:
        return Progress()
    job.task.load_state_dict(found.tensors("model"))
    optim.unpack(job.optimizer, job.task, found.tensors("optimizer"))
    if job.ema is not None:
        job.ema.load(found.tensors("ema"))
    scale.load(found.state["scale"])
    windows = found.state["windows"]
    if len(windows) == job.world.size:
        meter.load(windows[job.world.rank], job.world.device)
    elif job.world.is_main:
        meter.load(pooled(windows), job.world.device)
    return Progress(**found.state["progress"])
