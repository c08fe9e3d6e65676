"""A recipe as a LightningModule: its data, optimizer, schedules, EMA and scores.

`task = LightningTask("digits", epochs=5)`, then `Trainer(**task.trainer_options()).fit(task)`. Needs the extra
`lightning`. Lightning runs the loop, starts processes and writes its checkpoints; a step is that of `tetravit.train`,
so losses on one process are bitwise equal, also after a resume in the middle of an epoch.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tetravit.bridges.parts.recipe_run import Micro, RecipeRun, Weights, read_recipe
from tetravit.engine.precision import chosen
from tetravit.recipe import Recipe, dump

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities import rank_zero_warn
except ImportError:
    raise ImportError(
        "tetravit.bridges.lightning needs Lightning: pip install 'tetravit[lightning]'."
    ) from None

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}
DIVIDED = ("FSDP", "DeepSpeed", "ModelParallel")  # strategies of Lightning that give each process a share


class LightningTask(LightningModule):
    """A task of a recipe for Lightning's Trainer.

    Logged in training: "loss" and other values of the task; in validation the scores of the recipe's protocol,
    prefixed with "val_" ("val_top1"; for EMA weights "val_ema_top1").

    Args:
        recipe: a name from `tetravit list recipes`, a TOML file or its text, or a `Recipe`.
        overrides: changes to it, as in `tetravit.train`: epochs=5, optim={"lr": 1e-3}.

    Raises:
        ValueError: in one line, for an unknown or impossible setting.
    """

    def __init__(self, recipe: str | Path | Recipe, **overrides: Any) -> None:
        super().__init__()
        read = read_recipe(recipe, overrides)
        self.save_hyperparameters({"recipe": dump(read)}, logger=False)
        self.run = RecipeRun(read)
        self.task = self.run.task
        self._step = 0
        self._around: ExitStack | None = None
        self._losses: list[Tensor] = []
        self._names: list[str] = []
        self._average: dict[str, Tensor] | None = None

    def trainer_options(self) -> dict[str, Any]:
        """Trainer arguments set by the recipe: length, evaluations, accumulation, precision, kernels."""
        run = self.run.recipe.run
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = chosen(run.precision, device)
        if precision not in PRECISIONS:
            raise ValueError(
                f"LightningTask computes in float32 or bf16; got run.precision={precision}. The loss scale of fp16"
                " is part of `tetravit train`."
            )
        return {
            "max_steps": self.run.total_steps,
            "accumulate_grad_batches": self.run.accumulate,
            "precision": PRECISIONS[precision],
            "deterministic": "warn" if run.kernels == "repeatable" else False,
            "log_every_n_steps": run.log_steps,
            "use_distributed_sampler": False,
            **self._evaluations(),
        }

    def _evaluations(self) -> dict[str, Any]:
        """Validation interval of the Trainer, in steps or epochs; at the end of a shorter run."""
        run, total = self.run.recipe.run, self.run.total_steps
        steps = run.evaluate_steps or run.evaluate_epochs * self.run.loader.steps_per_epoch
        if steps == 0 or steps > total:
            steps = total
        if run.evaluate_steps or steps == total:
            return {"val_check_interval": steps * self.run.accumulate, "check_val_every_n_epoch": None}
        return {"check_val_every_n_epoch": run.evaluate_epochs}

    def setup(self, stage: str) -> None:
        """Take this process's share of the data.

        Raises:
            ValueError: if Trainer and recipe are inconsistent.
        """
        trainer = self.trainer
        if stage == "fit":
            self._check(trainer)
        self.run.enter(trainer.strategy.root_device, trainer.global_rank, trainer.world_size)

    def _check(self, trainer: Any) -> None:
        accumulate, wanted = trainer.accumulate_grad_batches, self.run.accumulate
        if accumulate != wanted:
            raise ValueError(
                f"A step of this recipe has {wanted} micro-batches: Trainer(accumulate_grad_batches={wanted}), or"
                f" run.accumulate={accumulate} in the recipe; got accumulate_grad_batches={accumulate}."
            )
        if trainer.gradient_clip_val:
            raise ValueError(
                "The recipe clips gradients: LightningTask(RECIPE, optim={'clip':"
                f" {trainer.gradient_clip_val:g}}}); got Trainer(gradient_clip_val={trainer.gradient_clip_val:g})."
            )
        if trainer.precision not in PRECISIONS.values():
            raise ValueError(
                "LightningTask computes in float32 or bf16: Trainer(precision='bf16-mixed'); got"
                f" {trainer.precision!r}."
            )
        strategy = type(trainer.strategy).__name__
        if any(name in strategy for name in DIVIDED):
            raise ValueError(
                "LightningTask keeps whole weights in every process: Trainer(strategy='ddp'); got"
                f" {strategy}. `tetravit train RECIPE run.strategy=fsdp` divides them."
            )
        steps, total = trainer.max_steps, self.run.total_steps
        if steps != total and not (steps == -1 and trainer.max_epochs == self._epochs()):
            rank_zero_warn(
                f"The schedules of this recipe are {total} steps long; the Trainer stops elsewhere. Trainer("
                f"max_steps={total}), or LightningTask(RECIPE, steps=...)."
            )

    def _epochs(self) -> int:
        return -(-self.run.total_steps // self.run.loader.steps_per_epoch)

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, Hi, Wi) -> the output of the saved network."""
        return self.task.weights()(images)

    def train_dataloader(self) -> "StepLoader":
        return StepLoader(self)

    def val_dataloader(self) -> list[int]:
        """A single item, because a protocol scores the whole set at once."""
        return [] if self.run.loaders is None else [0]

    def test_dataloader(self) -> list[int]:
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, Micro):
            return batch.to(device, self.run.memory_format)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_fit_start(self) -> None:
        self.run.begin()
        if self._average is not None and self.run.ema is not None:
            self.run.ema.load(self._average)
        self._average = None

    def training_step(self, batch: Micro, batch_idx: int) -> Tensor:
        """The loss of a micro-batch. Its contexts are closed after the backward pass."""
        self._leave()
        if batch.index == 0:
            self._step, self._losses, self._names = self.global_step, [], []
        self._around = ExitStack()
        self._around.enter_context(self.run.around(batch, self._step))
        values = self.task(batch.batch, self.run.progress(self._step))
        self._losses.append(values["loss"].detach())
        self._names += batch.batch.names
        others = {name: value.detach() for name, value in values.items() if name != "loss"}
        self.log("loss", values["loss"].detach(), prog_bar=True, batch_size=len(batch.batch))
        self.log_dict(others, batch_size=len(batch.batch))
        loss: Tensor = values["loss"]
        return loss

    def on_after_backward(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._around is not None:
            self._around.close()
            self._around = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as set in the recipe; a non-finite loss or gradient ends the run before the weights change."""
        loss = torch.stack(self._losses).sum()
        self.run.before_update(optimizer, self._step, loss, self._names)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.run.after_update(self._step)

    def on_train_batch_end(self, outputs: Any, batch: Micro, batch_idx: int) -> None:
        """Log values that are not means, and a warning if they show a failed run."""
        done = self._step + 1
        if batch.index + 1 < len(batch.step) or done % self.trainer.log_every_n_steps:
            return
        values = self.task.log_values(self.run.progress(self._step))
        self.log_dict(values, batch_size=1)
        alarm = self.task.alarm(values)
        if alarm is not None:
            rank_zero_warn(alarm)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The scores of the recipe's protocol, over all processes."""
        if not self.trainer.sanity_checking:
            scores = {f"val_{name}": value for name, value in self.run.scores().items()}
            self.log_dict(scores, batch_size=1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({f"test_{name}": value for name, value in self.run.scores().items()}, batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer = self.run.optimizer()
        schedule = self.run.schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.run.ema is not None:
            checkpoint["tetravit_ema"] = self.run.ema.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._average = checkpoint.get("tetravit_ema")

    def teardown(self, stage: str) -> None:
        self._leave()
        self.run.loader.close()

    def save(self, path: str | Path, weights: Weights = "raw") -> None:
        """Write a weights file for `tetravit.load`, `predict` and `export`, on rank 0.

        weights: raw, those of the last step; ema, their average.

        Raises:
            ValueError: for EMA weights of a recipe without an EMA.
        """
        if self._average is not None:  # loaded from a checkpoint, without a Trainer
            self.on_fit_start()
        self.run.save(path, weights, self._step + 1)


class StepLoader:
    """The micro-batches of an epoch, from the Trainer's current step."""

    def __init__(self, module: LightningTask) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.run.loader.steps_per_epoch * self.module.run.accumulate

    def __iter__(self) -> Iterator[Micro]:
        run, start = self.module.run, self.module.global_step
        epoch = run.loader.steps_per_epoch
        batches = run.loader.batches(start)
        for _ in range(epoch - start % epoch):
            step: Sequence[Any] = next(batches)
            for index, batch in enumerate(step):
                yield Micro(batch, index, step)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is the Trainer's global step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No effect; with `state_dict` it marks the loader as resumable within an epoch."""
