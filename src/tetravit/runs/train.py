"""Train a recipe: build its objects, run the engine, write a run folder; see `runs.folder` for its files."""

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tetravit.data.decode import BadImage
from tetravit.engine import optim
from tetravit.engine.checkpoint import MANIFEST, Checkpoint, Checkpoints, Sent
from tetravit.engine.determinism import kernels
from tetravit.engine.guard import NotFinite
from tetravit.engine.lock import Lock
from tetravit.engine.log import Console, JsonLines, Reporter, Reporters, Summary
from tetravit.engine.loop import Job, RunState, fit
from tetravit.engine.saving import FolderLost
from tetravit.engine.signals import Interrupted, Signals
from tetravit.files import read_json, replace_file, write_json
from tetravit.recipe import Recipe
from tetravit.runs import folder as folders
from tetravit.runs.build import Objects, build
from tetravit.runs.plan import duration, metric_name, plan
from tetravit.runs.resume import choose, to_resume
from tetravit.runs.rollback import CURES, MOST, Attempts, Rerouted, log_event, logged_attempts
from tetravit.trackers import RunInfo, check_trackers, trackers_of, tracking_reporters
from tetravit.world import world as enter_world

SHORTEST_S, STEPS_LATE = (
    1800.0,
    200,
)  # timeout of collectives: in seconds, and in steps if that is longer


def train(
    recipe: Recipe | None = None,
    run_dir: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    continuing: bool = False,
    reporters: Sequence[Reporter] | None = None,
    on_corrupt: Literal["previous", "stop"] = "previous",
    dry_run: bool = False,
    log: Sequence[str] = (),
) -> Summary:
    """Run a recipe, or continue a run.

    Args:
        recipe: the recipe; None with `resume`: the recipe of that run.
        run_dir: the folder of the run; None: a new folder below `runs`, named after date, model and data.
        resume: folder of a run to continue, from its newest intact checkpoint.
        continuing: continue the run in `run_dir` if there is one, else start it: for schedulers that restart jobs.
        reporters: receive the events of the run, on rank 0; None: the terminal.
        on_corrupt: for a damaged newest checkpoint, use the previous one, or stop.
        dry_run: build everything, print the plan, write nothing.
        log: experiment trackers for scalars, pictures and weights, besides metrics.csv: "tensorboard", "wandb",
            "mlflow". A resumed run keeps its trackers.

    Raises:
        ValueError: for an impossible setting of the recipe; nothing has been written then.
        BadCheckpoint: if no checkpoint of a run to resume is intact.
        NotFinite: for a NaN or infinite loss; `bad_step.json` in the run folder lists the images.
        Interrupted: after a signal, with everything saved.
    """
    log = check_trackers(log)
    if continuing:
        if run_dir is None or recipe is None:
            raise ValueError("A run that starts or continues needs a recipe and its folder: --into RUN.")
        resume = to_resume(run_dir)
    recipe, folder = choose(recipe, run_dir, resume)
    events = Reporters([Console()] if reporters is None else reporters)
    with ExitStack() as stack:
        world = stack.enter_context(enter_world(recipe.run.device))
        stack.enter_context(kernels(recipe.run.kernels, compiled=recipe.run.compile))
        if not world.is_main:
            events = Reporters([])
        folder = Path(world.broadcast(str(folder)))
        resumed = bool(world.broadcast(resume is not None))
        objects = build(recipe, world)
        stack.callback(objects.loader.close)
        folders.check_disk(folder, objects)
        if dry_run:
            if world.is_main:
                events.start(plan(objects, str(folder)))
                events.stop()
            return Summary(0, None, None, 0.0, lines=["Nothing was written: a dry run."])
        signal = stack.enter_context(Signals()).received
        if any(world.any(signal is not None)):
            raise Interrupted(
                f"Stopped by {signal or 'another rank'} before the first step; run the command again."
            )
        lock = Lock(folder, events.note)
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        return _Run(objects, folder, lock, events, log).run(resumed=resumed, on_corrupt=on_corrupt)


class _Run:
    """A run of `objects` in `folder`."""

    def __init__(
        self, objects: Objects, folder: Path, lock: Lock, events: Reporters, log: Sequence[str]
    ) -> None:
        self.objects, self.folder, self.lock, self.events, self.log = objects, folder, lock, events, log

    def run(self, *, resumed: bool, on_corrupt: Literal["previous", "stop"]) -> Summary:
        """Train, and write the run folder."""
        recipe, world, events = self.objects.recipe, self.objects.world, self.events
        if world.is_main:
            events.members.append(JsonLines(self.folder))
        before = read_json(self.folder / "run.json").get("world_size") if resumed else None
        record = world.broadcast(folders.opened(self.folder, recipe, world) if world.is_main else None)
        checkpoints = Checkpoints(
            self.folder,
            run_id=record["id"],
            keep=recipe.run.keep,
            on_full=recipe.run.on_full,
            say=events.note,
        )
        newest: Checkpoint | None = None
        if world.is_main:
            checkpoints.prepare()
            newest = checkpoints.latest(on_corrupt=on_corrupt) if resumed else None
        newest = world.broadcast(newest)
        if world.is_main:
            run = RunInfo(self.folder, record["id"], json.loads(recipe.model_dump_json()))
            names = (*(trackers_of(self.folder) if resumed else ()), *self.log)
            events.members.extend(tracking_reporters(names, run, events.note))
        if newest is not None and not all(world.gather((newest.path / MANIFEST).exists())):
            events.note(
                "The run folder is not shared: rank 0 reads the checkpoint and sends it to the others."
            )
            newest = Sent(newest.path, newest.step, newest.state, world)
        job = self._job(checkpoints, newest)
        if before is not None and before != world.size:
            events.note(
                f"World size changed {before} -> {world.size}: same samples, same losses up to rounding."
            )
        step_seconds = 0.0
        if world.is_main:
            planned = plan(self.objects, str(self.folder), newest.step if newest else 0)
            step_seconds = planned.step_seconds
            events.start(planned)
        world.set_timeout(max(SHORTEST_S, STEPS_LATE * world.broadcast(step_seconds)))
        status = "failed"
        try:
            state = self._fitted(job, checkpoints)
            status = "finished"
        except Interrupted:
            status = "interrupted"
            raise
        except NotFinite as error:
            if world.is_main:
                bad = {"step": error.step, "what": error.quantity, "names": error.names}
                replace_file(self.folder / "bad_step.json", json.dumps(bad, indent=1).encode())
            raise
        except BadImage as error:
            cure = "data.on_bad=skip leaves such images out, with --resume RUN too"
            raise BadImage(error.name, f"{error.cause}; {cure}") from None
        except FolderLost as lost:
            raise self._rescued(record["id"], lost) from None
        finally:
            events.stop()
            if world.is_main:
                with suppress(OSError):  # the error being raised is more informative
                    write_json(self.folder / "run.json", {**record, "end": folders.now(), "status": status})
        try:
            return self._finished(state)
        except OSError as error:
            reason = error.strerror or str(error)
            raise self._rescued(record["id"], FolderLost(state.done, reason, {}, {})) from None

    def _rescued(self, run_id: str, lost: FolderLost) -> ValueError:
        if not self.objects.world.is_main:
            return ValueError("Rank 0 cannot write to the run folder.")
        return folders.rescue(self.folder, self.objects, run_id, lost, self._continue_command())

    def _continue_command(self) -> str:
        return f"tetravit train --resume {shlex.quote(str(self.folder))}"

    def _fitted(self, job: Job, checkpoints: Checkpoints) -> RunState:
        """Train to the end, with rollbacks after faults if `run.on_nan` is "rollback"."""
        run, world = self.objects.recipe.run, self.objects.world
        if run.on_nan == "stop":
            return fit(job)
        rows = world.broadcast(
            logged_attempts(self.folder) if world.is_main and job.resume is not None else []
        )
        attempts = Attempts(run.seed, rows)
        rate, per_epoch = job.rate, job.loader.steps_per_epoch
        loader = Rerouted(job.loader, attempts, lambda seed: self.objects.with_seed(seed=seed))
        rerouted: dict[str, Any] = {
            "loader": loader,
            "rate": attempts.rate(rate),
            "seed_at": attempts.seed_at,
        }
        job = replace(job, **rerouted, facts=lambda: {"attempts": attempts.rows()})
        while True:
            try:
                return fit(job)
            except NotFinite as error:
                newest = world.broadcast(checkpoints.latest() if world.is_main else None)
                if newest is None:
                    raise
                attempt = attempts.add(newest.step, error.step, run.rollback_steps, per_epoch)
                event = {
                    "event": "rollback",
                    "step": error.step,
                    "what": error.quantity,
                    "images": error.names,
                }
                event |= {"checkpoint": newest.step, "attempt": attempt.number if attempt else None}
                event |= {"until": attempt.until} if attempt else {}
                if world.is_main:
                    log_event(self.folder, **event)
                if attempt is None:
                    text = f"{error} Three attempts from checkpoints did not help. {CURES}"
                    raise NotFinite(error.step, error.quantity, error.names, text=text) from None
                self.events.note(
                    f"The {error.quantity} of step {error.step} is not finite: back to step {newest.step}, attempt"
                    f" {attempt.number} of {MOST}."
                )
                job = replace(job, resume=newest)

    def _job(self, checkpoints: Checkpoints, newest: Checkpoint | None) -> Job:
        objects, settings = self.objects, self.objects.recipe.optim
        return Job(
            task=objects.task,
            loader=objects.loader,
            optimizer=optim.build(objects.task, settings),
            rate=objects.rate,
            total_steps=objects.total_steps,
            config=objects.recipe.run,
            world=objects.world,
            schedules=objects.schedules,
            clip=settings.clip,
            clip_by=settings.clip_by,
            ema=objects.ema,
            protocol=objects.protocol,
            loaders=objects.loaders,
            checkpoints=checkpoints,
            resume=newest,
            reporters=self.events,
            on_best=self._keep_best,
            on_hang=self.lock.release if objects.world.is_main else lambda: None,
            on_alarm=self._log_alarm,
            how_to_continue=self._continue_command(),
        )

    def _keep_best(self, record: dict[str, Any], findings: dict[str, Any]) -> None:
        if not self.objects.world.is_main:
            return
        try:
            folders.keep_best(self.folder, self.objects, record, findings)
        except OSError as error:
            if self.objects.recipe.run.on_full == "stop":
                raise
            self.events.note(f"Could not write best.safetensors: {error.strerror}; the run continues.")

    def _log_alarm(self, step: int, text: str) -> None:
        if self.objects.world.is_main:
            log_event(self.folder, event="collapse", step=step, text=text)

    def _finished(self, state: RunState) -> Summary:
        lines: list[str] = []
        if self.objects.world.is_main:
            source = f"step {state.done}, raw weights"
            folders.write_weights(self.folder, self.objects, "last.safetensors", source)
            written = folders.write_report(self.folder, self.events.note)
            lines = self._closing_lines(state, written)
        summary = Summary(
            state.done, state.best, state.best_step, round(state.seconds, 1), self.folder, lines
        )
        self.events.finish(summary)
        return summary

    def _closing_lines(self, state: RunState, report: bool) -> list[str]:
        best, took = self.folder / "best.safetensors", duration(state.seconds)
        lines = [f"Trained {state.done:,} steps in {took}: {self.folder}"]
        if state.best is not None:
            score = f"{100 * state.best:.2f} %" if 0 <= state.best <= 1 else f"{state.best:.4g}"
            lines[0] = (
                f"Best val {metric_name(state.metric)} {score} (step {state.best_step}) in {took}: {best}"
            )
        if report:
            lines.append(f"Report: {self.folder / 'report.html'}")
        if state.best is not None:
            lines.append(f"Next: tetravit predict {shlex.quote(str(best))} IMAGE")
        return lines
