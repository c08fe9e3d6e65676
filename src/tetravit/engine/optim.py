"""From a model to its optimizer: which parameters decay, how fast each depth learns, and when."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tetravit.engine.schedule import deit_epochs, gcvit_steps, poly, staircase, warmup_cosine

State = dict[str, Tensor]


class OptimConfig(BaseModel):
    """The `[optim]` section of a recipe.

    lr: peak rate for `lr_batch` images a step, scaled with the batch; with `lr_batch = 0` it is taken as it is.
    decay: what weight decay acts on. `matrices`: weights of linear layers and convolutions, nothing else.
    `authors`: also position tables, bias tables, temperatures and other parameters of two dimensions or more,
    save those that the model's `no_weight_decay()` names, as in the DeiT code that the papers build on. `all`:
    everything but what `no_decay` names: parts of parameter names ("norm1."), as in the papers' dense releases.
    schedule: `cosine`; `poly`, down to min_lr as (1 - step / steps) ** power; `steps`, times `gamma` after each epoch
    of `milestones`. warmup_steps: length of the warm-up; None: warmup_epochs.
    warmup_lr, min_lr: where the warm-up starts and the cosine ends; absolute, not scaled. cooldown_epochs: how
    many epochs at the end run at min_lr.
    faithful: train as the release `release` really does, with what its code does unlike its description: for
    all, `decay = "authors"`, and momentum after Nesterov in `sgd`; `deit` (XCiT and Twins too): the rate moves
    once per epoch, the first two epochs run at warmup_lr, and there is no cooldown; `convit`: as `deit`, and what
    no_weight_decay() names decays too; `gcvit`: the cosine counts the warm-up.
    clip: largest global norm of the gradient; 0 leaves it alone.
    layer_decay: the rate of each group of `stages()` is this times that of the group after it.
    ema: decay of the averaged weights; 0 keeps none. ema_warmup: `on` starts the average faster,
    with min(ema, (1 + step) / (10 + step)).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=5e-4, gt=0)
    lr_batch: int = Field(default=512, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    decay: Literal["matrices", "authors", "all"] = "matrices"
    no_decay: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["cosine", "poly", "steps"] = "cosine"
    power: float = Field(default=1.0, gt=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup_epochs: int = Field(default=5, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)
    cooldown_epochs: int = Field(default=0, ge=0)
    clip: float = Field(default=0.0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    faithful: bool = False
    release: Literal["deit", "convit", "gcvit"] = "deit"
    ema: float = Field(default=0.0, ge=0, lt=1)
    ema_warmup: Literal["on", "off"] = "on"

    def peak(self, batch_size: int) -> float:
        """The peak learning rate for a global batch of `batch_size` images."""
        return self.lr * batch_size / self.lr_batch if self.lr_batch else self.lr

    def warmup(self, steps_per_epoch: int) -> int:
        """The length of the warm-up in steps."""
        return self.warmup_epochs * steps_per_epoch if self.warmup_steps is None else self.warmup_steps

    def rate(
        self, *, epochs: int, steps_per_epoch: int, batch_size: int, total: int | None = None
    ) -> Callable[[int], float]:
        """The learning rate as a function of the step, counted from 0; `total` steps, None: all of `epochs`."""
        warmup, cooldown = self.warmup(steps_per_epoch), self.cooldown_epochs * steps_per_epoch
        ends: dict[str, Any] = {"peak": self.peak(batch_size), "start": self.warmup_lr, "floor": self.min_lr}
        total = epochs * steps_per_epoch if total is None else total
        if self.schedule == "poly":
            return partial(poly, total=total, warmup=warmup, power=self.power, **ends)
        if self.schedule == "steps":
            del ends["floor"]
            falls = tuple(epoch * steps_per_epoch for epoch in self.milestones)
            return partial(staircase, falls=falls, gamma=self.gamma, warmup=warmup, **ends)
        if not self.faithful:
            return partial(warmup_cosine, total=total - cooldown, warmup=warmup, **ends)
        if self.release == "gcvit":
            return partial(gcvit_steps, total=total, cooldown=cooldown, warmup=warmup, **ends)
        return partial(
            deit_epochs, per_epoch=steps_per_epoch, epochs=epochs, warmup=self.warmup_epochs, **ends
        )


def build(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of every parameter of `model` that trains; its rates are set by `set_lr` before each step."""
    found = groups(model, config)
    if config.name == "sgd":
        nesterov = config.faithful and config.momentum > 0
        return torch.optim.SGD(found, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
    return torch.optim.AdamW(found, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters in groups that share `weight_decay` and `scale`, the factor on the learning rate."""
    scales = _scales(model, config.layer_decay)
    undecayed = _undecayed(model, config)
    table: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (0.0 if name in undecayed else config.weight_decay, scales.get(name, 1.0))
            table.setdefault(key, []).append(parameter)
    return [{"params": p, "weight_decay": decay, "scale": scale} for (decay, scale), p in table.items()]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def pack(optimizer: Optimizer, model: nn.Module) -> State:
    """What the optimizer remembers, as tensors named by parameter ("backbone.norm.weight/exp_avg")."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def unpack(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `pack` gave; every tensor keeps the device and memory layout of its parameter."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        home = torch.empty_like(parameter) if value.shape == parameter.shape else None
        kept = value.to(parameter.device, copy=True) if home is None else home.detach().copy_(value)
        optimizer.state[parameter][entry] = kept


def _undecayed(model: nn.Module, config: OptimConfig) -> set[str]:
    """Names of the parameters that weight decay leaves alone."""
    decay = "authors" if config.faithful else config.decay
    protects = not (config.faithful and config.release == "convit")
    named = {
        f"{prefix}{name}"
        for prefix, owner in (("", model), ("model.", getattr(model, "model", None)))
        if protects and hasattr(owner, "no_weight_decay")
        for name in owner.no_weight_decay()  # type: ignore[operator, union-attr]
    }
    if decay == "all":
        return {n for n, _ in model.named_parameters() if any(part in n for part in config.no_decay)}
    kept = {name for name, p in model.named_parameters() if p.ndim < 2 or name.endswith(".bias")} | named
    if decay == "authors":
        return kept
    tables = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return kept | tables | {n for n, _ in model.named_parameters() if n.rsplit(".", 1)[-1] != "weight"}


def _scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each parameter of a backbone; what follows the backbone learns at 1."""
    if layer_decay == 1.0:
        return {}
    backbones = {
        n: m for n, m in model.named_modules() if re.fullmatch(r"(.*\.)?backbone", n) and hasattr(m, "stages")
    }
    scales: dict[str, float] = {}
    for prefix, backbone in backbones.items():
        stages: list[list[nn.Module]] = backbone.stages()  # type: ignore[operator, assignment]
        depth = {p: i for i, group in enumerate(stages) for module in group for p in module.parameters()}
        for name, parameter in backbone.named_parameters():
            # What no stage holds (class token, position table) is read first: it learns like the stem.
            scales[f"{prefix}.{name}"] = layer_decay ** (len(stages) - depth.get(parameter, 0))
    return scales
