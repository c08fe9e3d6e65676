"""The training loop, for any task. Read `fit` from top to bottom.

A step is a function of the recipe and its number. Its images come from `loader.batches(start)`, its randomness from
(seed, step, index of a sample in the batch), its learning rate from `rate(step)`. An interrupted run therefore
continues bitwise identically: a checkpoint contains tensors, the step, and the partial means of the log.

One file, so that a step and the work between two steps can be read in one place.
"""

import operator
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from tetravit.engine import optim
from tetravit.engine.checkpoint import Checkpoint, Checkpoints
from tetravit.engine.clipping import ClipBy, clipped
from tetravit.engine.config import RunConfig
from tetravit.engine.ema import Ema
from tetravit.engine.feed import Feed
from tetravit.engine.guard import Guard, NotFinite, takes_found_inf
from tetravit.engine.log import Clock, Meter, Reporters, pooled
from tetravit.engine.memory import freed_memory_kept
from tetravit.engine.precision import LossScale, Precision, autocast, chosen
from tetravit.engine.pulse import Pulse
from tetravit.engine.saving import FolderLost, Saver
from tetravit.engine.signals import Interrupted, Signals
from tetravit.engine.strategies import Wrapped, pick_strategy
from tetravit.engine.waits import Waits
from tetravit.protocols import Loaders
from tetravit.protocols import Protocol as TaskProtocol
from tetravit.seeds import micro_batch, number_layers, seed_step
from tetravit.structures import Batch
from tetravit.tasks import Task
from tetravit.tasks.base import Progress, Schedule
from tetravit.world import World


class Loader(Protocol):
    """Yields the batches of a run: step `start`, `start + 1`, ... without end, each as micro-batches."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start: int) -> Iterator[list[Batch]]: ...


@dataclass
class Job:
    """The inputs of `fit`.

    rate: learning rate of a step, counted from 0. schedules: other optimizer settings as functions of the step.
    loaders: data for `protocol`; None: no evaluation. clip: maximum gradient norm, of all parameters (`global`) or of
    each; 0: no clipping. on_best: called at a new best score, while the model has the weights with that score.
    on_hang: called before this rank ends because another one hangs. on_alarm: called with the number of steps and the
    message of a task that has collapsed.
    how_to_continue: the command that continues an interrupted run. seed_at: random seed of a step; None:
    `config.seed`. facts: plain data stored in every checkpoint.
    """

    task: Task
    loader: Loader
    optimizer: Optimizer
    rate: Callable[[int], float]
    total_steps: int
    config: RunConfig = field(default_factory=RunConfig)
    world: World = field(default_factory=lambda: World(torch.device("cpu")))
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    clip: float = 0.0
    clip_by: ClipBy = "global"
    ema: Ema | None = None
    protocol: TaskProtocol | None = None
    loaders: Loaders | None = None
    checkpoints: Checkpoints | None = None
    resume: Checkpoint | None = None
    reporters: Reporters = field(default_factory=lambda: Reporters([]))
    on_best: Callable[[dict[str, Any], dict[str, Any]], None] = lambda record, findings: None
    on_hang: Callable[[], object] = lambda: None
    on_alarm: Callable[[int, str], None] = lambda step, text: None
    how_to_continue: str = "run the same command again"
    seed_at: Callable[[int], int] | None = None
    facts: Callable[[], dict[str, Any]] = dict


@dataclass
class RunState:
    """The state of the run between two steps. All of it is in a checkpoint.

    done: number of completed steps. evaluated: the value of `done` at the last evaluation. metric: the score that
    selects the best weights, once there is one. best_loss: the validation loss of the best weights, if the protocol
    has one; missing in checkpoints of earlier versions.
    """

    done: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int | None = None
    metric: str | None = None
    best_loss: float | None = None
    seconds: float = 0.0


def fit(job: Job) -> RunState:
    """Train until `total_steps`, from the checkpoint in `job.resume` or from the start.

    Raises:
        Interrupted: after a signal, once the step is finished and saved.
        Collapsed: if the task reports a collapse and `config.on_collapse` is `stop`.
        NotFinite: if a loss or gradient is NaN or infinite; the weights are those before that step.
        OSError: if a checkpoint cannot be written and `config.on_full` is `stop`.
        FolderLost: if three checkpoints in a row cannot be written for a reason other than a full disk.
    """
    config, world, task = job.config, job.world, job.task
    device, total = world.device, job.total_steps
    precision = chosen(config.precision, device)
    memory_format = torch.channels_last if config.memory_format == "channels_last" else None
    scale = LossScale(device, active=precision == "fp16")
    meter = Meter(device)

    state = _restore(job, scale, meter)
    saver = Saver(job.checkpoints if world.is_main else None, background=config.save_in_background)
    if config.compile:
        task.model.compile()
    wrapped = pick_strategy(config.strategy, world).wrap(task, world)
    wrapped.adopt(job.optimizer)
    optim.allocate(job.optimizer)
    task = wrapped.task or task
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    joint = [list(group) for group in task.joint_clip()]
    gated = takes_found_inf(job.optimizer)  # skips bad steps on the device
    guard = Guard(task, device) if gated else Guard(task, device, lag=0)
    clock, waits = Clock(state.seconds), Waits(device)
    saved_at, saved_step, logged_step = time.monotonic(), state.done, state.done
    slots = number_layers(task)
    ranks: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "device": device}
    task.train()

    with (
        Signals() as signals,
        Pulse(world, config.hang_seconds, job.on_hang) as pulse,
        _finished(saver),
        freed_memory_kept(device),
    ):

        def save() -> None:
            nonlocal saved_at, saved_step
            if saved_step != state.done:
                _check(job, guard, all_steps=True)
                state.seconds = clock.seconds
                _save(job, saver, state, scale, meter, wrapped)
            saved_at, saved_step = time.monotonic(), state.done

        def stop() -> None:
            save()
            saver.wait()
            world.any(
                False
            )  # no rank exits before the checkpoint is complete: schedulers would end the others
            raise Interrupted(
                f"Stopped by {signals.received or 'another rank'} after step {state.done} of {total}; "
                f"continue with: {job.how_to_continue}"
            )

        def evaluate() -> None:
            _check(job, guard, all_steps=True)
            wrapped.sync()
            try:
                _evaluate(job, state, precision, signals)
            except _StoppedInside:
                stop()
            clock.skip()

        if _evaluation_due(job, state):
            evaluate()
        batches = job.loader.batches(state.done) if state.done < total else iter(())
        feed = Feed(batches, device, memory_format)

        for step in range(state.done, total):
            progress = Progress(step, total, job.loader.steps_per_epoch)
            settings = {name: value(step) for name, value in job.schedules.items()}
            optim.set_values(job.optimizer, job.rate(step), settings)
            guard.before(step)
            task.loss_scale = scale.factor

            # Forward and backward, once per micro-batch; only the last one averages gradients over the ranks.
            pulse.at(step + 1)
            with waits:
                micros = next(feed)
            losses: list[Tensor] = []
            for i, batch in enumerate(micros):
                batch = feed.on_device(batch)
                seed = config.seed if job.seed_at is None else job.seed_at(step)
                seed_step(seed, step, i, world.rank)
                last = i == len(micros) - 1
                with ExitStack() as stack:
                    stack.enter_context(micro_batch(seed, step, i, rows=len(batch), slots=slots, **ranks))
                    stack.enter_context(task.whole_step(micros, world.gather))
                    if not last:
                        stack.enter_context(wrapped.no_sync())
                    with autocast(precision, device):
                        values = wrapped.module(batch, progress)
                    scale.scaled(values["loss"] / len(micros)).backward()
                feed.copy_ahead(micros[i + 1 : i + 2])
                losses.append(values["loss"].detach())
                meter.add(values)
                clock.count(len(batch) * world.size)

            # Check, then update the weights, without a GPU synchronization.
            gradients = [p.grad for p in parameters if p.grad is not None]
            scale.unscale(gradients)
            norm = wrapped.whole(clipped(parameters, gradients, job.clip, job.clip_by, joint))
            task.before_update(progress)
            names = [name for batch in micros for name in batch.names]
            good, overflow = guard.after(
                step, torch.stack(losses).sum(), norm, names, job.optimizer, excuse=scale.excuse
            )
            minutes_up = config.save_minutes > 0 and time.monotonic() - saved_at > 60 * config.save_minutes
            stopping, saving = _check(job, guard, signals.received is not None, minutes_up)
            if gated or bool(good):
                job.optimizer.step()
            scale.update(overflow)
            job.optimizer.zero_grad(set_to_none=True)
            del gradients  # the next step has its own
            if job.ema is not None:
                job.ema.update(step, good if scale.active else None)
            task.after_update(progress, good)
            state.done = step + 1
            job.reporters.tick(state.done)
            if state.done < total and not stopping:
                with waits:
                    feed.fetch()

            # Between two steps: log, save, stop on a signal, evaluate. In this order, so that stopping never waits.
            if state.done % config.log_steps == 0 or state.done == total:
                _log(job, state, meter, clock, waits, norm_of=step, steps=state.done - logged_step)
                logged_step = state.done
            if saving or stopping or _save_due(job, state.done):
                save()
            if stopping and state.done < total:
                stop()
            if _evaluation_due(job, state):
                evaluate()

        _check(job, guard, all_steps=True)
    wrapped.sync()
    state.seconds = clock.seconds
    return state


class Collapsed(ValueError):
    """The task reported a collapse, and `run.on_collapse` is `stop`."""


class _StoppedInside(Exception):
    """A signal arrived during an evaluation."""


def _check(job: Job, guard: Guard, *flags: bool, all_steps: bool = False) -> list[bool]:
    """Combine `flags` over the ranks; raise if any rank reports a bad step."""
    fault = guard.bad_step(all_steps=all_steps)
    bad, *agreed = job.world.any(fault is not None, *flags)
    if bad:
        faults = [f for f in job.world.gather(fault) if f is not None]
        step, quantity = faults[0][0], "loss" if any(f[1] == "loss" for f in faults) else "gradient"
        guard.restore(step)
        job.optimizer.zero_grad(set_to_none=True)
        raise NotFinite(step, quantity, [name for f in faults if f[1] == quantity for name in f[2]])
    return agreed


def _log(
    job: Job, state: RunState, meter: Meter, clock: Clock, waits: Waits, *, norm_of: int, steps: int
) -> None:
    """Report the means since the last line, over all ranks, and the time of each rank."""
    windows, ranks = zip(*job.world.gather((meter.take(), waits.take(steps))), strict=True)
    window = pooled(list(windows))
    means = {name: total / window["count"] for name, total in window["sums"].items()}
    per_epoch = job.loader.steps_per_epoch
    values = job.task.log_values(Progress(state.done - 1, job.total_steps, per_epoch))
    record = {
        "step": state.done,
        "epoch": state.done / job.loader.steps_per_epoch,
        "lr": job.rate(norm_of),
        **means,
        **values,
        "timing": {**clock.look(job.total_steps - state.done, steps), "ranks": list(ranks)},
    }
    job.reporters.step(record)
    alarm = job.task.alarm(values)
    if alarm is not None:
        job.on_alarm(state.done, alarm)
    if alarm is not None and job.config.on_collapse == "stop":
        raise Collapsed(f"{alarm} The run stopped after step {state.done}: run.on_collapse is stop.")
    if alarm is not None:
        job.reporters.note(alarm)


def _save_due(job: Job, done: int) -> bool:
    config, epoch = job.config, job.loader.steps_per_epoch
    by_step = config.save_steps > 0 and done % config.save_steps == 0
    by_epoch = config.save_epochs > 0 and done % (config.save_epochs * epoch) == 0
    return by_step or by_epoch or done == job.total_steps


def _evaluation_due(job: Job, state: RunState) -> bool:
    """Evaluate if it is due; also after a resume from a checkpoint written before the evaluation of its step."""
    done, config = state.done, job.config
    every = config.evaluate_steps or config.evaluate_epochs * job.loader.steps_per_epoch
    wanted = done == job.total_steps or (every > 0 and done > 0 and done % every == 0)
    return wanted and job.loaders is not None and state.evaluated != done


def _evaluate(job: Job, state: RunState, precision: Precision, signals: Signals) -> None:
    """Score the weights, and the EMA weights, by the protocol of the run; keep the best.

    On a tie, the later weights are the best if their loss is lower.
    """
    task, protocol, loaders = job.task, job.protocol, job.loaders
    assert protocol is not None
    assert loaders is not None
    record: dict[str, Any] = {"step": state.done, "epoch": state.done / job.loader.steps_per_epoch}
    sets = [("", nullcontext())] + ([("ema_", job.ema.applied())] if job.ema is not None else [])
    start = time.perf_counter()
    job.reporters.evaluating()
    best, best_step, metric, least = state.best, state.best_step, state.metric, state.best_loss
    for prefix, weights in sets:
        with weights, _evaluating(task), autocast(precision, job.world.device):
            scores = protocol.score(task.weights(), _stoppable(loaders, signals, job.world))
            name, value, better = primary(task, protocol, scores.values)
            loss = scores.values.get("loss")
            tie = value == best and loss is not None and least is not None and loss < least
            if value is not None and (best is None or better(value, best) or tie):
                best, best_step, metric, least = value, state.done, name, loss
                job.on_best(
                    {**record, "weights": prefix.rstrip("_") or "raw", **scores.values}, scores.findings
                )
        record |= {f"{prefix}{name}": value for name, value in scores.values.items()}
    state.best, state.best_step, state.metric, state.evaluated = best, best_step, metric, state.done
    state.best_loss = least
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
    """A loader that ends at the first signal, on a single process only: several ranks finish the evaluation
    together."""

    def __init__(self, loader: Any, signals: Signals) -> None:
        self._loader, self._signals = loader, signals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._signals.received:
                raise _StoppedInside
            yield batch

    def batches(self, start: int = 0) -> Iterator[list[Batch]]:
        for micros in self._loader.batches(start):
            if self._signals.received:
                raise _StoppedInside
            yield micros


def _stoppable(loaders: Loaders, signals: Signals, world: World) -> Loaders:
    if world.size > 1:
        return loaders
    return Loaders(
        _Stoppable(loaders.validation, signals),
        loaders.info,
        make_train=lambda: _Stoppable(loaders.train, signals),
        make_augmented=lambda text, size, seed: _Stoppable(
            loaders.augmented(text, batch_size=size, seed=seed), signals
        ),
        world=world,
    )


def primary(
    task: Task, protocol: TaskProtocol, scores: Mapping[str, float]
) -> tuple[str | None, float | None, Callable[[float, float], bool]]:
    """The score that selects weights: name, value, and whether another value is better."""
    if task.primary_metric:
        higher = task.best_is == "higher"
        return task.primary_metric, scores.get(task.primary_metric), operator.gt if higher else operator.lt
    name = protocol.primary(scores)
    return name, scores[name] if name else None, protocol.better


def _save(job: Job, saver: Saver, state: RunState, scale: LossScale, meter: Meter, wrapped: Wrapped) -> None:
    """Write a checkpoint; rank 0 writes, the others send their partial means. An error ends all ranks."""
    windows = job.world.gather(meter.state())
    wrapped.sync()
    packed = optim.pack(job.optimizer, wrapped.task or job.task)
    packed = {name: wrapped.whole(value) for name, value in packed.items()}
    error: Exception | None = None
    if saver.active:
        try:
            _write(job, saver, state, scale, windows, packed)
        except (OSError, FolderLost) as caught:
            error = caught
    if job.world.any(error is not None)[0]:
        raise error or FolderLost(state.done, "rank 0 cannot write", {}, {})


def _write(
    job: Job,
    saver: Saver,
    state: RunState,
    scale: LossScale,
    windows: list[dict[str, Any]],
    optimizer: Mapping[str, Tensor],
) -> None:
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": job.task.state_dict(),
        "optimizer": optimizer,
    }
    if job.ema is not None:
        tensors["ema"] = job.ema.state()
    facts = {
        "progress": dict(vars(state)),
        "windows": windows,
        "scale": scale.state(),
        "logs": job.reporters.mark(),
        "seed": job.config.seed,
        **job.facts(),
    }
    saver.save(state.done, tensors, facts)


@contextmanager
def _finished(saver: Saver) -> Iterator[None]:
    """On exit, wait for pending writes; an exception in flight takes precedence over a write error."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            saver.wait()
        raise
    saver.wait()


def _restore(job: Job, scale: LossScale, meter: Meter) -> RunState:
    """Restore a checkpoint: weights, optimizer, EMA, state, log position."""
    checkpoint = job.resume
    if job.world.is_main:
        # Also without a checkpoint: a run that was killed before its first one has written some lines.
        job.reporters.rewind(checkpoint.state["logs"] if checkpoint else None)
    if checkpoint is None:
        return RunState()
    job.task.load_state_dict(checkpoint.tensors("model"))
    optim.unpack(job.optimizer, job.task, checkpoint.tensors("optimizer"))
    if job.ema is not None:
        job.ema.load(checkpoint.tensors("ema"))
    scale.load(checkpoint.state["scale"])
    windows = checkpoint.state["windows"]
    if len(windows) == job.world.size:
        meter.load(windows[job.world.rank], job.world.device)
    elif job.world.is_main:
        meter.load(pooled(windows), job.world.device)
    return RunState(**checkpoint.state["progress"])
