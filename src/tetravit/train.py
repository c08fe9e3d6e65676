"""A recipe becomes objects, the engine runs them, a run folder remains.

RUN/recipe.toml        everything, defaults included; repeats the run
RUN/run.json           version, commit, machine, command line, how it ended
RUN/metrics.jsonl      means and scores, the same in every run of the recipe; timing.jsonl: what is not
RUN/checkpoints/       what a resumed run continues from
RUN/best.safetensors   the weights with the best score; evaluation.json: what they get wrong
RUN/last.safetensors   the weights of the last step
RUN/report.html        curves and pictures
"""

import importlib.util
import json
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch

from tetravit.data.build import build_dataset
from tetravit.data.datasets import DATASETS
from tetravit.data.evaluation import EvalLoader, make_eval_loader
from tetravit.data.loader import TrainLoader, make_train_loader
from tetravit.data.parts import class_notes
from tetravit.engine import optim, provenance
from tetravit.engine.checkpoint import Checkpoint, Checkpoints, size_mib
from tetravit.engine.ema import Ema
from tetravit.engine.guard import NotFinite
from tetravit.engine.lock import Lock
from tetravit.engine.log import Console, JsonLines, Plan, Reporter, Reporters, Summary
from tetravit.engine.loop import Job, RunState, fit
from tetravit.engine.precision import chosen
from tetravit.engine.rehearsal import rehearse
from tetravit.engine.signals import Interrupted
from tetravit.files import check_room, replace_file
from tetravit.protocols import PROTOCOLS, Loaders
from tetravit.recipe import Recipe, dump, load
from tetravit.tasks import TASKS, Task
from tetravit.weights.fileformat import Header, package_version, save
from tetravit.world import World
from tetravit.world import world as enter_world

# What may change when a run is resumed, because it changes no number beyond rounding. A teacher may lie elsewhere:
# a checkpoint knows the checksum of its weights.
FREE = {
    "data": {"root", "train", "val", "test", "workers", "val_batch_size"},
    "task": {"teacher", "teacher_weights"},
    "run": None,
}
FIXED = {"run": {"seed"}}


def train(
    recipe: Recipe | None = None,
    run_dir: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    reporters: Sequence[Reporter] | None = None,
    on_corrupt: Literal["previous", "stop"] = "previous",
    dry_run: bool = False,
) -> Summary:
    """Run a recipe, or continue a run.

    Args:
        recipe: what to run; None with `resume`: the recipe of that run.
        run_dir: where to leave the run; None: a new folder below `runs`, named after date, model and data.
        resume: folder of a run to continue, from its newest whole checkpoint.
        reporters: who is told, on rank 0; None: the terminal.
        on_corrupt: whether a damaged newest checkpoint gives way to the one before it, or ends the command.
        dry_run: build everything, tell the plan, write nothing.

    Raises:
        ValueError: for anything the user wrote that cannot be; nothing has been written then.
        BadCheckpoint: if no checkpoint of a run to resume is whole.
        NotFinite: for a NaN or infinite loss; `bad_step.json` in the run folder names the images.
        Interrupted: after a signal, with everything saved.
    """
    recipe, folder = _chosen(recipe, run_dir, resume)
    told = Reporters([Console()] if reporters is None else reporters)
    with ExitStack() as stack:
        world = stack.enter_context(enter_world(recipe.run.device))
        stack.enter_context(_kernels(recipe.run.kernels))
        if not world.is_main:
            told = Reporters([])
        folder = Path(world.broadcast(str(folder)))
        run = _Run(recipe, folder, world, told)
        stack.callback(run.loader.close)
        run.check_room()
        if dry_run:
            if world.is_main:
                told.start(run.plan())
                told.stop()
            return Summary(0, None, None, 0.0, lines=["Nothing was written: a dry run."])
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run.lock)
        return run.run(resumed=resume is not None, on_corrupt=on_corrupt)


class _Run:
    """The objects of one run. Building them writes nothing."""

    def __init__(self, recipe: Recipe, folder: Path, world: World, told: Reporters) -> None:
        self.recipe, self.folder, self.world, self.told = recipe, folder, world, told
        self.lock = Lock(folder)
        data, run = recipe.data, recipe.run
        if data.root is None and data.train is None and DATASETS[data.name].needs_root:
            raise ValueError("The recipe lacks data.root.")
        ranks: dict[str, Any] = {
            "rank": world.rank,
            "world_size": world.size,
            "pin_memory": world.device.type == "cuda",
        }
        dataset = build_dataset(data, "train")
        self.info, scales = dataset.info, recipe.evaluate.eval_scales()
        self.num_classes, self.class_names = self.info.num_classes, self.info.class_names
        self.validation: EvalLoader = make_eval_loader(
            data, scales=scales, class_names=self.class_names, **ranks
        )

        torch.manual_seed(run.seed)
        row = TASKS[recipe.task.name]
        model = row.create(recipe.model.name, data=self.info, **self._model_options())
        _freeze(model, recipe.model.freeze)
        self.task: Task = row(model, recipe.task, self.info)
        self.task.prepare(data)
        self.loader: TrainLoader = make_train_loader(
            data,
            seed=run.seed,
            accumulate=run.accumulate,
            views=self.task.views(),
            dataset=dataset,
            **ranks,
        )
        self.protocol = PROTOCOLS[recipe.evaluate.protocol](recipe.evaluate)
        self.loaders = Loaders(
            self.validation,
            self.validation.dataset.info,
            make_train=lambda: make_eval_loader(data, split="train", scales=scales, **ranks),
            world=world,
        )
        self.protocol.prepare(self.loaders)
        memory_format = torch.channels_last if run.memory_format == "channels_last" else torch.preserve_format
        self.task.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.ema = Ema(model, recipe.optim.ema, recipe.optim.ema_warmup) if recipe.optim.ema else None
        per_epoch = self.loader.steps_per_epoch
        self.total_steps = recipe.total_steps(per_epoch)
        if self.ema is not None and self.task.weights() is not model:
            raise ValueError(
                f"optim.ema averages the model, but the task {recipe.task.name!r} saves another network;"
                " set optim.ema=0."
            )
        own = self.task.schedules(self.total_steps, per_epoch, data.batch_size)
        recipes = recipe.optim.other_schedules(total=self.total_steps, steps_per_epoch=per_epoch)
        self.schedules = {**own, **recipes}
        self.rate = recipe.optim.rate(
            epochs=recipe.total_epochs(per_epoch),
            steps_per_epoch=per_epoch,
            batch_size=data.batch_size,
            total=self.total_steps,
        )

    def _model_options(self) -> dict[str, Any]:
        """What the recipe says of the model, for `Task.create`."""
        section = self.recipe.model
        usual = self.recipe.data.image_size if TASKS[self.recipe.task.name].model_kind == "classify" else None
        given = {
            "head": section.head,
            "head_options": section.head_options,
            "image_size": section.image_size or usual,
            "drop_path": section.drop_path,
            "weights": section.weights or None,
            "backbone_weights": section.backbone_weights or None,
            **section.options,
        }
        return {name: value for name, value in given.items() if value not in (None, {})}

    def check_room(self) -> None:
        """Refuse a folder that cannot take the run, before anything is written."""
        if self.world.is_main:
            state = self.task.state_dict()
            per_step = (3 + (self.ema is not None)) * size_mib(state)
            check_room(self.folder, (self.recipe.run.keep + 1) * per_step + 2 * size_mib(state))

    def plan(self, first_step: int = 0) -> Plan:
        """What is about to run, in words."""
        recipe, steps = self.recipe, self.loader.steps_per_epoch
        data, settings, run = recipe.data, recipe.optim, recipe.run
        params = sum(p.numel() for p in self.task.model.parameters())
        images = f"{len(self.loader.dataset):,} images to train on, {self.validation.total:,} held out"
        micro = data.batch_size // (self.world.size * run.accumulate)
        device = str(self.world.device)
        if self.world.device.type == "cpu":
            device += f", {torch.get_num_threads()} threads"
        height, width = data.canvas(micro)
        up_to = "" if height == width == data.image_size else "up to "
        averaged = f", averaged with decay {settings.ema:g}" if self.ema else ""
        lines = [
            ("model", f"{recipe.model.name}, {params / 1e6:.2f} M parameters, {self.num_classes} classes"),
            ("data", f"{data.name}: {images}, {up_to}{height} x {width} pixels"),
            *(("left out", line) for line in self.info.problems),
            *(("classes", line) for line in self._class_notes()),
            ("steps", f"{recipe.total_epochs(steps)} epochs of {steps}: {self.total_steps:,} steps"),
            (
                "batch",
                f"{data.batch_size} = {self.world.size} x {run.accumulate} x {micro} (ranks, parts, images)",
            ),
            ("rate", f"{self._rates()}, {settings.name}{averaged}"),
            ("device", f"{device}, {chosen(run.precision, self.world.device)}"),
            *self._rehearsed(micro, first_step),
            ("folder", str(self.folder)),
        ]
        if first_step:
            lines.append(("resumed", f"after step {first_step:,}"))
        return Plan(lines, self.total_steps, steps, first_step)

    def _class_notes(self) -> list[str]:
        """Classes that one part lacks."""
        parts = (("training", self.info), ("validation", self.validation.dataset.info))
        return [
            line
            for part, info in parts
            for line in class_notes(info.counts, self.class_names, f"the {part} images")
        ]

    def _rates(self) -> str:
        """The peak, and the way there and on."""
        steps, settings = self.loader.steps_per_epoch, self.recipe.optim
        peak = settings.peak(self.recipe.data.batch_size)
        text = f"{peak:g} after {settings.warmup(steps)} steps, {self.rate(self.total_steps - 1):.3g} last"
        return f"{text}, as the {settings.release} release" if settings.faithful else text

    def _rehearsed(self, micro: int, first_step: int) -> list[tuple[str, str]]:
        """Memory and time as a rehearsal of one part of a step suggests them; rank 0 alone tries."""
        recipe, device = self.recipe, self.world.device
        found = rehearse(
            self.task,
            images=micro,
            size=recipe.data.canvas(micro),
            precision=chosen(recipe.run.precision, device),
            device=device,
            settings=recipe.optim,
            memory_format=torch.channels_last if recipe.run.memory_format == "channels_last" else None,
        )
        if found is None:
            return []
        step_s = found.step_seconds(micro * recipe.run.accumulate)
        speed = recipe.data.batch_size / step_s
        left = _duration(step_s * (self.total_steps - first_step))
        return [
            ("memory", f"about {_size(found.memory_mib(micro))} per rank"),
            ("time", f"about {left} at {speed:.3g} images/s, measured on {found.images} images per rank"),
        ]

    def run(self, *, resumed: bool, on_corrupt: Literal["previous", "stop"]) -> Summary:
        """Train, and leave the run folder behind."""
        leads = self.world.is_main
        if leads:
            self.told.members.append(JsonLines(self.folder))
        record = self.world.broadcast(_opened(self.folder, self.recipe, self.world) if leads else None)
        checkpoints = Checkpoints(
            self.folder,
            run_id=record["id"],
            keep=self.recipe.run.keep,
            on_full=self.recipe.run.on_full,
            say=self.told.note,
        )
        found: Checkpoint | None = None
        if leads:
            checkpoints.prepare()
            found = checkpoints.latest(on_corrupt=on_corrupt) if resumed else None
        found = self.world.broadcast(found)
        job = self._job(checkpoints, found)
        if leads:
            self.told.start(self.plan(found.step if found else 0))
        status = "failed"
        try:
            progress = fit(job)
            status = "finished"
        except Interrupted:
            status = "interrupted"
            raise
        except NotFinite as error:
            if leads:
                bad = {"step": error.step, "what": error.what, "names": error.names}
                replace_file(self.folder / "bad_step.json", json.dumps(bad, indent=1).encode())
            raise
        finally:
            self.told.stop()
            if leads:
                with suppress(OSError):  # the error under way says more
                    _write_json(self.folder / "run.json", {**record, "end": _now(), "status": status})
        return self._finished(progress)

    def _job(self, checkpoints: Checkpoints, found: Checkpoint | None) -> Job:
        settings = self.recipe.optim
        return Job(
            task=self.task,
            loader=self.loader,
            optimizer=optim.build(self.task, settings),
            rate=self.rate,
            total_steps=self.total_steps,
            config=self.recipe.run,
            world=self.world,
            schedules=self.schedules,
            clip=settings.clip,
            clip_by=settings.clip_by,
            ema=self.ema,
            protocol=self.protocol,
            loaders=self.loaders,
            checkpoints=checkpoints,
            resume=found,
            reporters=self.told,
            on_best=self._keep_best,
            on_log=self.lock.beat if self.world.is_main else lambda: None,
            how_to_continue=f"tetravit train --resume {shlex.quote(str(self.folder))}",
        )

    def _keep_best(self, record: dict[str, Any], findings: dict[str, Any]) -> None:
        """The model holds the best weights so far: write them, and what they get wrong."""
        if not self.world.is_main:
            return
        findings = {**record, "class_names": self.class_names, **findings}
        try:
            self._write_weights("best.safetensors", f"step {record['step']}, {record['weights']} weights")
            replace_file(self.folder / "evaluation.json", json.dumps(findings).encode())
        except OSError as error:
            if self.recipe.run.on_full == "stop":
                raise
            self.told.note(f"Could not write best.safetensors: {error.strerror}; the run goes on.")

    def _write_weights(self, name: str, source: str) -> None:
        recipe = self.recipe
        header = Header(
            model=recipe.model.name,
            options=self._options(),
            task=self.task.model_kind,
            head=getattr(self.task.weights(), "head_name", None),
            num_classes=self.num_classes,
            class_names=self.class_names,
            preprocess=recipe.data.preprocess,
            recipe=dump(recipe),
            source=f"trained here: {source}",
        )
        save(self.folder / name, self.task.weights().state_dict(), header)

    def _options(self) -> dict[str, Any]:
        """What builds the model again, with what came from the weights it began with."""
        known = {**getattr(self.task.weights(), "options", {}), **self.recipe.model.options}
        if self.task.model_kind == "classify":
            known["image_size"] = self.recipe.data.image_size
        return {key: value for key, value in known.items() if key != "drop_path"}

    def _finished(self, progress: RunState) -> Summary:
        lines: list[str] = []
        if self.world.is_main:
            self._write_weights("last.safetensors", f"step {progress.done}, raw weights")
            lines = self._closing_lines(progress)
        summary = Summary(
            progress.done, progress.best, progress.best_step, round(progress.seconds, 1), self.folder, lines
        )
        if self.world.is_main:
            _report(self.folder, self.told)
        self.told.finish(summary)
        return summary

    def _closing_lines(self, progress: RunState) -> list[str]:
        minutes, seconds = divmod(round(progress.seconds), 60)
        took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        best = self.folder / "best.safetensors"
        if progress.best is None:
            return [f"Trained {progress.done:,} steps in {took}: {self.folder}"]
        share = f"{100 * progress.best:.1f} % {progress.metric}"
        return [
            f"Reached {share} on {self.validation.total:,} held-out images in {took}: {best}",
            f"Next: tetravit predict {shlex.quote(str(best))} IMAGE",
        ]


def _chosen(
    recipe: Recipe | None, run_dir: str | Path | None, resume: str | Path | None
) -> tuple[Recipe, Path]:
    """The recipe and the folder, after checking that they go together."""
    if resume is None:
        if recipe is None:
            raise ValueError("train takes a recipe, or a run to resume; got neither.")
        folder = Path(run_dir) if run_dir is not None else _fresh(recipe)
        if (folder / "recipe.toml").exists():
            raise ValueError(
                f"{folder} already holds a run. Continue it with --resume {folder}, or take another folder."
            )
        return recipe, folder
    folder = Path(resume)
    if run_dir is not None and Path(run_dir) != folder:
        raise ValueError(f"A resumed run stays in its folder {folder}; got {run_dir}.")
    if not (folder / "recipe.toml").is_file() or not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no recipe.toml and run.json.")
    kept = load(folder / "recipe.toml")
    if recipe is not None:
        _check_same(kept, recipe)
    return recipe or kept, folder


def _check_same(kept: Recipe, wanted: Recipe) -> None:
    """A resumed run keeps what decides its numbers."""
    old, new = _flat(kept.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
    for path in sorted(old.keys() | new.keys()):
        section, _, key = path.partition(".")
        free = FREE.get(section, set())
        if free is None:
            free = {key} - FIXED.get(section, set())
        if old.get(path) != new.get(path) and key not in free:
            raise ValueError(f"A resumed run keeps {path}: it is {old.get(path)!r}; got {new.get(path)!r}.")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _fresh(recipe: Recipe) -> Path:
    """A name below `runs` that nothing has yet."""
    name = f"{datetime.now():%Y-%m-%d}_{recipe.model.name}_{recipe.data.name}"
    folders = (Path("runs") / (name if i == 1 else f"{name}_{i}") for i in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def _opened(folder: Path, recipe: Recipe, world: World) -> dict[str, Any]:
    """Write run.json and then recipe.toml, whose presence says that the folder holds a run."""
    path = folder / "run.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    record = {
        "id": kept.get("id", uuid.uuid4().hex),
        "version": package_version(),
        **provenance.commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": provenance.device_name(world.device),
        "host": platform.node(),
        "world_size": world.size,
        "seed": recipe.run.seed,
        "command": shlex.join(sys.argv),
        "start": kept.get("start", _now()),
        "resumed": [*kept.get("resumed", []), *([_now()] if kept else [])],
        "status": "running",
    }
    _write_json(path, record)
    replace_file(folder / "recipe.toml", dump(recipe).encode())
    if folder.parent.name == "runs":
        provenance.point_latest(folder)
    return record


@contextmanager
def _kernels(kind: Literal["repeatable", "fastest"]) -> Iterator[None]:
    """Ask torch for kernels that give the same bits every time; afterwards all is as it was."""
    if kind == "fastest":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    fill, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark


def _freeze(model: Any, what: int | Literal["backbone"]) -> None:
    """Leave the first groups of the backbone, or all of it, as they are."""
    if what != "backbone":
        model.backbone.freeze(what)
        return
    model.backbone.freeze(len(model.backbone.stages()))
    model.backbone.requires_grad_(False)  # class tokens and position tables, which no group holds


def _report(folder: Path, told: Reporters) -> None:
    """report.html, where the module that writes it is there; a fault in it costs no run."""
    if importlib.util.find_spec("tetravit.report") is None:
        return
    try:
        importlib.import_module("tetravit.report").write(folder)
    except Exception as error:
        told.note(f"report.html was not written: {type(error).__name__}: {error}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _size(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    replace_file(path, json.dumps(value, indent=1).encode())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
