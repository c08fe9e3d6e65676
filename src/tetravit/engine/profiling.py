"""Profile time and memory of a step before training. The state of the run does not change."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tetravit.engine.optim import OptimConfig
from tetravit.engine.optimizers import OPTIMIZERS
from tetravit.engine.precision import Precision, autocast
from tetravit.layers.selective_recompute import on_saved_tensor
from tetravit.tasks import Task
from tetravit.tasks.base import Progress

LONG_S = 5.0  # longer steps are not repeated
IMAGES = {"cpu": 4}  # images per profile, by device; others 32


@dataclass(frozen=True)
class Profile:
    """Time and memory of a forward and backward pass over `images` images.

    seconds: duration of the pass. kept_mib: activations kept for the backward pass. fixed_mib: weights, gradients,
    optimizer state and EMA weights, independent of the batch.
    """

    images: int
    seconds: float
    kept_mib: float
    fixed_mib: float

    def step_seconds(self, images: int) -> float:
        """Duration of a step over `images` images on this device, in seconds."""
        return self.seconds * images / self.images

    def memory_mib(self, images: int) -> float:
        """Peak memory of a step whose largest micro-batch has `images` images, in MiB."""
        return self.fixed_mib + self.kept_mib * images / self.images


def profile_step(
    task: Task,
    *,
    images: int,
    size: int | tuple[int, int],
    precision: Precision,
    device: torch.device,
    settings: OptimConfig,
    memory_format: torch.memory_format | None = None,
) -> Profile | None:
    """Profile a step, with at most `images` random images; None if the task has no profile.

    Weights, running statistics and random states are restored afterwards.
    """
    count = min(images, IMAGES.get(device.type, 32))
    held = {name: value.clone() for name, value in task.named_buffers()}
    training = task.training
    task.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            batch = task.example(count, size)
            if batch is None:
                return None
            count = len(batch)  # a task may require more images than requested
            batch = batch.to(device, memory_format)
            kept: dict[tuple[torch.device, int], int] = {}
            ours = {p.untyped_storage().data_ptr() for p in task.parameters()}

            def keep(tensor: Tensor) -> None:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in ours:
                    kept[tensor.device, storage.data_ptr()] = storage.nbytes()

            def run() -> float:
                start = time.perf_counter()
                with autocast(precision, device):
                    loss = task.step(batch, Progress(0, 1, 1))["loss"]
                loss.backward()
                loss.item()  # synchronizes
                return time.perf_counter() - start

            with on_saved_tensor(keep):
                seconds = run()
            if seconds < LONG_S:
                seconds = run()  # without hooks, after a warm-up
    finally:
        task.zero_grad(set_to_none=True)
        task.train(training)
        with torch.no_grad():
            for name, value in task.named_buffers():
                value.copy_(held[name])
    return Profile(count, seconds, sum(kept.values()) / 2**20, fixed_mib(task, settings))


def fixed_mib(task: Task, settings: OptimConfig) -> float:
    """MiB of weights, gradients, optimizer state, EMA weights, and the weights of a teacher."""

    def mib(tensors: list[Tensor]) -> float:
        return sum(t.numel() * t.element_size() for t in tensors) / 2**20

    everything = mib([*task.parameters(), *task.buffers()])
    training = mib([p for p in task.parameters() if p.requires_grad])
    slots = OPTIMIZERS[settings.name].slots(settings)
    external = mib(
        [t for module in task.external_modules() for t in (*module.parameters(), *module.buffers())]
    )
    return everything * (2 if settings.ema else 1) + training * (1 + slots) + external
