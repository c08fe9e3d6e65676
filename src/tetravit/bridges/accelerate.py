"""A recipe under Hugging Face accelerate: a short training loop, on one process or several.

Needs the extra `accelerate`. A step is that of `tetravit.train`, so losses on one process are bitwise equal.

    run = AccelerateRun("digits", Accelerator(mixed_precision="bf16"), epochs=5)
    for step, batches in run.steps():
        losses = run.step(step, batches)
    run.save("digits.safetensors")
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetravit.bridges.parts.recipe_run import Micro, RecipeRun, Weights, read_recipe
from tetravit.recipe import Recipe
from tetravit.structures import Batch

DIVIDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")  # kinds of accelerate that give each process a share


class AccelerateRun:
    """The prepared objects of a recipe.

    module, optimizer: from `accelerator.prepare`. done: completed steps; saved by `accelerator.save_state`, with the
    EMA weights.

    Args:
        recipe: a name from `tetravit list recipes`, a TOML file or its text, or a `Recipe`.
        accelerator: an Accelerator without gradient accumulation, which the recipe sets in run.accumulate.
        overrides: changes to the recipe, as in `tetravit.train`: epochs=5, optim={"lr": 1e-3}.

    Raises:
        ValueError: in one line, for an unknown or impossible setting.
    """

    def __init__(self, recipe: str | Path | Recipe, accelerator: Any, **overrides: Any) -> None:
        self.run = RecipeRun(read_recipe(recipe, overrides))
        given = accelerator.gradient_accumulation_steps
        if given != 1:
            raise ValueError(
                f"The recipe accumulates gradients: run.accumulate={given}; got"
                f" Accelerator(gradient_accumulation_steps={given})."
            )
        if accelerator.mixed_precision not in ("no", "bf16"):
            raise ValueError(
                "AccelerateRun computes in float32 or bf16: mixed_precision='bf16'; got"
                f" {accelerator.mixed_precision!r}."
            )
        kind = getattr(accelerator.distributed_type, "value", str(accelerator.distributed_type))
        if kind in DIVIDED:
            raise ValueError(
                f"AccelerateRun keeps whole weights in every process (MULTI_GPU, MULTI_CPU); got {kind}."
                " `tetravit train RECIPE run.strategy=fsdp` divides them."
            )
        self.accelerator = accelerator
        task = self.run.task.to(accelerator.device)
        self.run.enter(accelerator.device, accelerator.process_index, accelerator.num_processes)
        self.run.begin()
        optimizer = self.run.optimizer()
        self.schedule = self.run.schedule(optimizer)
        self.module, self.optimizer = accelerator.prepare(task, optimizer)
        self.module.train()
        self.done = 0
        accelerator.register_for_checkpointing(self)

    def steps(self) -> Iterator[tuple[int, list[Batch]]]:
        """Steps from `done` on: the step number and this rank's micro-batches."""
        batches = self.run.loader.batches(self.done)
        for step in range(self.done, self.run.total_steps):
            yield step, next(batches)

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One optimizer step; returns the means over its micro-batches of "loss" and other logged values.

        Raises:
            NotFinite: for a non-finite loss or gradient, before the weights change.
        """
        run, accelerator = self.run, self.accelerator
        rows: list[dict[str, Tensor]] = []
        for index, batch in enumerate(batches):
            micro = Micro(batch, index, batches).to(accelerator.device, run.memory_format)
            last = index == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.module), run.around(micro, step):
                values = self.module(micro.batch, run.progress(step))
                accelerator.backward(values["loss"] / len(batches))
            rows.append({name: value.detach() for name, value in values.items()})
        loss = torch.stack([row["loss"] for row in rows]).sum()
        run.before_update(self.optimizer, step, loss, [name for batch in batches for name in batch.names])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        run.after_update(step)
        self.done = step + 1
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def scores(self) -> dict[str, float]:
        """Scores of the recipe's protocol over all processes; those of the EMA weights are prefixed with "ema_"."""
        with self.accelerator.autocast():
            return self.run.scores()

    def save(self, path: str | Path, weights: Weights = "raw") -> None:
        """Write a weights file for `tetravit.load`, on rank 0. weights: raw, or ema, their average."""
        self.run.save(path, weights, self.done)

    def state_dict(self) -> dict[str, Any]:
        """State saved by `accelerator.save_state` besides weights and optimizer."""
        return {"done": self.done, "ema": self.run.ema.state() if self.run.ema is not None else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the saved step."""
        self.done = state["done"]
        self.schedule.load_state_dict({"last_epoch": self.done})
        if self.run.ema is not None:
            self.run.ema.load(state["ema"])
