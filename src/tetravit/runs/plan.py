"""The plan of a run: the lines printed before the first step."""

import torch

from tetravit.engine.log import Plan
from tetravit.engine.precision import chosen
from tetravit.engine.profiling import Profile, profile_step
from tetravit.runs.build import Objects
from tetravit.weights import CHECKPOINTS

RANDOM = "none (random)"
METRICS = {
    "miou": "mIoU",
    "top1": "top-1",
    "top5": "top-5",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "map": "mAP",
}


def plan(objects: Objects, folder: str, first_step: int = 0) -> Plan:
    """The plan of a run into `folder`; first_step: completed steps of a resumed run."""
    recipe, per_epoch = objects.recipe, objects.loader.steps_per_epoch
    data, settings, run, world = recipe.data, recipe.optim, recipe.run, objects.world
    params = sum(p.numel() for p in objects.task.model.parameters())
    micro = data.batch_size // (world.size * run.accumulate)
    device = str(world.device)
    if world.device.type == "cpu":
        device += f", {torch.get_num_threads()} threads"
    unit = "GPUs" if world.device.type == "cuda" else "processes"
    classes = getattr(objects.task.weights(), "num_classes", objects.info.num_classes)
    kind = f"{classes} classes" if classes else "no classes"
    profiled, step_seconds = _profiled(objects, micro, first_step)
    lines = [
        ("model", f"{recipe.model.name}, {params / 1e6:.2f} M parameters, {kind}"),
        ("weights", _weights(objects)),
        *_random_start(objects),
        ("data", _data(objects, micro)),
        *(("left out", line) for line in objects.info.problems),
        *(("note", line) for line in objects.notes),
        ("steps", length(objects.total_steps, per_epoch)),
        (
            "batch",
            f"{data.batch_size} = {world.size} x {run.accumulate} x {micro} ({unit} x accumulation x batch)",
        ),
        ("learning rate", _rates(objects)),
        ("optimizer", settings.name),
        *objects.task.plan_lines(objects.total_steps, per_epoch, data.batch_size),
        *([("EMA decay", f"{settings.ema:g}")] if objects.ema is not None else []),
        ("device", f"{device}, {chosen(run.precision, world.device)}"),
        *profiled,
        ("folder", folder),
    ]
    if first_step:
        lines.append(("resumed", f"after step {first_step:,}"))
    return Plan(lines, objects.total_steps, per_epoch, first_step, step_seconds)


def length(steps: int, per_epoch: int) -> str:
    """Length of a run: `300 epochs of 1,251 steps: 375,300 steps`, or `12 steps (0.002 epochs)`."""
    epochs, rest = divmod(steps, per_epoch)
    if rest:
        return f"{_steps(steps)} ({steps / per_epoch:.3g} epochs)"
    plural = "s" if epochs > 1 else ""
    return f"{epochs} epoch{plural} of {_steps(per_epoch)}: {_steps(steps)}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def metric_name(metric: str | None) -> str:
    """A score's name as in papers."""
    return METRICS.get(metric or "", metric or "")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _weights(objects: Objects) -> str:
    """The initial weights of the model."""
    section = objects.recipe.model
    parts = [section.weights] if section.weights else []
    parts += [f"{section.backbone_weights} (backbone)"] if section.backbone_weights else []
    return ", ".join(parts) or RANDOM


def _random_start(objects: Objects) -> list[tuple[str, str]]:
    """A warning if a fine-tuning recipe starts from random weights."""
    recipe = objects.recipe
    tuned = recipe.optim.layer_decay < 1 or recipe.model.freeze not in (0, None)
    if _weights(objects) != RANDOM or not tuned or objects.task.model_kind is None:
        return []
    name = recipe.model.name
    key = "weights" if objects.task.model_kind == "classify" else "backbone_weights"
    rows = [row for row in CHECKPOINTS.values() if row.model == name and row.task == "classify"]
    row = next((row for row in rows if row.tag == "in1k"), rows[0] if rows else None)
    if row is None:
        cure = f"none are published for {name}; model.{key} takes a file or a run folder"
        return [("warning", f"a recipe for fine-tuning starts from random weights: {cure}")]
    licence = (
        row.licence
        if row.commercial
        else f"{row.licence}: `tetravit weights fetch {row.name} --accept-license`"
    )
    return [
        (
            "warning",
            f"a recipe for fine-tuning starts from random weights; model.{key}={row.tag} starts from {row.name}"
            f" ({licence}). Without a network: `tetravit weights bundle {row.name}` elsewhere, `tetravit weights"
            " import FILE` here; TETRAVIT_OFFLINE=1 skips the try",
        )
    ]


def _data(objects: Objects, micro: int) -> str:
    data = objects.recipe.data
    height, width = data.canvas(micro)
    up_to = "" if (height, width) == data.sides else "up to "
    images = f"{len(objects.loader.dataset):,} training images"
    if objects.loaders is not None:
        images += f", {objects.validation.total:,} validation images"
    return f"{data.name}: {images}, {up_to}{height} x {width} pixels"


def _rates(objects: Objects) -> str:
    """Peak learning rate, warm-up and final learning rate."""
    per_epoch, settings = objects.loader.steps_per_epoch, objects.recipe.optim
    warmup = settings.warmup(per_epoch)
    text = f"{settings.peak(objects.recipe.data.batch_size):g}"
    text += f" after {warmup:,} warm-up steps" if warmup else ""
    text += f", {objects.rate(objects.total_steps - 1):.3g} at the end"
    return f"{text}, as in the {settings.release} release" if settings.faithful else text


def _profiled(objects: Objects, micro: int, first_step: int) -> tuple[list[tuple[str, str]], float]:
    """Memory and time, extrapolated from one micro-batch on this process, and the seconds per step."""
    recipe, device, model = objects.recipe, objects.world.device, objects.task.model

    def measured() -> Profile | None:
        return profile_step(
            objects.task,
            images=micro,
            size=recipe.data.canvas(micro),
            precision=chosen(recipe.run.precision, device),
            device=device,
            settings=recipe.optim,
            memory_format=torch.channels_last if recipe.run.memory_format == "channels_last" else None,
        )

    profile = measured()
    if profile is None:
        return [], 0.0
    whole: Profile | None = None
    if recipe.run.recompute:
        model.set_grad_checkpointing(False)  # type: ignore[operator]
        whole = measured()
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    instead = f" (recomputed), in place of {_size(whole.memory_mib(micro))}" if whole is not None else ""
    step_s = profile.step_seconds(micro * recipe.run.accumulate)
    speed = recipe.data.batch_size / step_s
    left = duration(step_s * (objects.total_steps - first_step))
    unit = "GPU" if device.type == "cuda" else "process"
    lines = [
        ("memory", f"about {_size(profile.memory_mib(micro))} per {unit}{instead}"),
        ("time", f"about {left} at {speed:.3g} images/s, measured on {profile.images} images per {unit}"),
    ]
    return lines, step_s


def _size(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
