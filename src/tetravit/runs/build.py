"""Build the objects of a run from a recipe. Writes no files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from tetravit.data.build import as_trained, build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.datasets import DATASETS
from tetravit.data.datasets.base import DatasetInfo
from tetravit.data.evaluation import make_eval_loader
from tetravit.data.loader import TrainLoader, make_augmented_loader, make_train_loader
from tetravit.data.parts import class_notes
from tetravit.engine.ema import Ema
from tetravit.engine.strategies import pick_strategy
from tetravit.protocols import PROTOCOLS, Loaders, Protocol
from tetravit.recipe import Recipe
from tetravit.tasks import TASKS, Task
from tetravit.tasks.base import Schedule
from tetravit.world import World


@dataclass
class Objects:
    """The objects of a recipe.

    recipe: the effective recipe; its batch size may be reduced. info: of the training set. loaders: None: no
    evaluation. rate: learning rate of a step; schedules: other optimizer settings. with_seed: builds the training
    loader with another `seed`. notes: adapted settings and unavailable scores, one line each.
    """

    recipe: Recipe
    world: World
    info: DatasetInfo
    loader: TrainLoader
    task: Task
    protocol: Protocol
    loaders: Loaders | None
    ema: Ema | None
    total_steps: int
    rate: Callable[[int], float]
    schedules: Mapping[str, Schedule]
    with_seed: Callable[..., TrainLoader]
    notes: list[str] = field(default_factory=list)

    @property
    def validation(self) -> Any:
        """The validation loader, or None."""
        return self.loaders.validation if self.loaders is not None else None


def build(recipe: Recipe, world: World) -> Objects:
    """Build the objects of a recipe, on the device of this process.

    Raises:
        ValueError: for an impossible setting of the recipe.
    """
    data, run = recipe.data, recipe.run
    if data.root is None and data.train is None and DATASETS[data.name].needs_root:
        raise ValueError(
            f"The recipe lacks data.root: data.root=FOLDER says where the data set {data.name!r} lies."
        )
    ranks = places_of(world)
    dataset = build_dataset(as_trained(recipe.data, recipe.model.head), "train")
    info, notes = dataset.info, list(recipe.notes)
    notes += class_notes(info.counts, info.class_names, "the training images")
    data, note = _fitted_batch(data, len(dataset), world.size * run.accumulate)
    recipe = recipe.model_copy(update={"data": data})
    notes += note
    protocol = PROTOCOLS[recipe.evaluate.protocol](recipe.evaluate)
    loaders = evaluation_loaders(recipe, info, protocol, world)

    torch.manual_seed(run.seed)
    row = TASKS[recipe.task.name]
    model = row.create(recipe.model.name, data=info, **model_options(recipe))
    freeze(model, recipe.model.freeze)
    if run.recompute:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    task = row(model, recipe.task, info)
    task.prepare(data)
    task.static_graph &= run.accumulate == 1  # DDP's static graph does not support gradient accumulation
    notes += task.data_notes(dataset)
    with_seed = partial(
        make_train_loader,
        data,
        accumulate=run.accumulate,
        views=task.views(),
        dataset=dataset,
        finish_later=world.device.type == "cuda",
        **ranks,
    )
    loader = with_seed(seed=run.seed)
    if loaders is not None:
        notes += class_notes(loaders.info.counts, info.class_names, "the validation images")
        notes += protocol.prepare(loaders)
    else:
        notes.append("no evaluation: the data set has no labels to score on")
    memory_format = torch.channels_last if run.memory_format == "channels_last" else torch.preserve_format
    task.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    if recipe.optim.ema and task.weights() is not model:
        raise ValueError(
            f"optim.ema averages the model, but the task {recipe.task.name!r} saves another network; set optim.ema=0."
        )
    strategy = pick_strategy(run.strategy, world)
    strategy.check(task, world)
    if recipe.optim.ema and not strategy.averages:
        raise ValueError(f"run.strategy={run.strategy} keeps no averaged weights; set optim.ema=0.")
    per_epoch = loader.steps_per_epoch
    total = recipe.total_steps(per_epoch)
    recipe, note = _fitted_warmup(recipe, total)
    notes += note
    return Objects(
        recipe=recipe,
        world=world,
        info=info,
        loader=loader,
        with_seed=with_seed,
        task=task,
        protocol=protocol,
        loaders=loaders,
        ema=Ema(model, recipe.optim.ema, recipe.optim.ema_warmup) if recipe.optim.ema else None,
        total_steps=total,
        rate=recipe.optim.rate(
            epochs=recipe.total_epochs(per_epoch),
            steps_per_epoch=per_epoch,
            batch_size=data.batch_size,
            total=total,
        ),
        schedules={
            **task.schedules(total, per_epoch, data.batch_size),
            **recipe.optim.other_schedules(total=total, steps_per_epoch=per_epoch),
        },
        notes=notes,
    )


def places_of(world: World) -> dict[str, Any]:
    """Loader arguments that depend on the process."""
    return {
        "rank": world.rank,
        "world_size": world.size,
        "pin_memory": world.device.type == "cuda",
    }


def model_options(recipe: Recipe) -> dict[str, Any]:
    """The model section of a recipe, as arguments of `Task.create`."""
    section = recipe.model
    usual = recipe.data.image_size if TASKS[recipe.task.name].model_kind == "classify" else None
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


def freeze(model: Any, groups: int | Literal["backbone"]) -> None:
    """Freeze the first groups of the backbone, or all of it."""
    if groups != "backbone":
        model.backbone.freeze(groups)
        return
    model.backbone.freeze(len(model.backbone.stages()))
    model.backbone.requires_grad_(False)  # includes class tokens and position tables, which are in no group


def _fitted_batch(data: DataConfig, images: int, parts: int) -> tuple[DataConfig, list[str]]:
    """The section with a batch size of at most the training set, and a line about it.

    parts: processes times accumulation, which must divide the batch size.
    """
    unit = parts * data.group * (2 if data.mix else 1)
    fits = images // unit * unit
    if images >= data.batch_size or fits == 0:
        return data, []
    line = f"batch of {fits} in place of {data.batch_size}: the training set has {images} images"
    return data.model_copy(update={"batch_size": fits}), [line]


def _fitted_warmup(recipe: Recipe, total: int) -> tuple[Recipe, list[str]]:
    """The recipe with a warm-up that fits into the run, and a line about it."""
    warmup = recipe.optim.warmup_steps
    if warmup is None or warmup <= total:
        return recipe, []
    optim = recipe.optim.model_copy(update={"warmup_steps": total // 10})
    line = f"warm-up of {total // 10} steps in place of {warmup}: the run has {total} steps"
    return recipe.model_copy(update={"optim": optim}), [line]


def evaluation_loaders(recipe: Recipe, info: DatasetInfo, protocol: Protocol, world: World) -> Loaders | None:
    """The data for scoring; None: no labels that the protocol could score.

    info: of the training set.
    """
    ranks = places_of(world)
    data, scales = as_trained(recipe.data, recipe.model.head), recipe.evaluate.eval_scales()
    if protocol.kinds and info.kind not in protocol.kinds:
        return None
    validation = make_eval_loader(data, scales=scales, class_names=info.class_names, **ranks)
    return Loaders(
        validation,
        validation.dataset.info,
        make_train=lambda: make_eval_loader(data, split="train", scales=scales, **ranks),
        make_augmented=partial(make_augmented_loader, data, data.preprocess, info.class_names, **ranks),
        world=world,
    )
