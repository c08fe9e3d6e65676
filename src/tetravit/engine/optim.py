"""Build the optimizer of a model: parameter groups, weight decay, learning rates and schedules."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from tetravit.data.calls import parse_calls
from tetravit.data.options import Options
from tetravit.engine.clipping import ClipBy
from tetravit.engine.optimizers import OPTIMIZERS
from tetravit.engine.schedules import SCHEDULES, Span
from tetravit.registry import pick, suggestion

State = dict[str, Tensor]
RELEASES = {"deit": "deit_epochs", "convit": "deit_epochs", "gcvit": "gcvit_steps"}


class OptimConfig(BaseModel):
    """The `[optim]` section of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(default="adamw", description="The optimizer; `tetravit list optimizers`.")
    options: Options = Field(default_factory=dict, description="Further options of the optimizer.")
    lr: float = Field(default=5e-4, gt=0, description="Peak learning rate for lr_batch images per step.")
    lr_batch: int = Field(
        default=512,
        ge=0,
        description="Batch size for which lr is given; the learning rate is scaled with the batch. 0: no scaling.",
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay; see decay.")
    decay: Literal["matrices", "authors", "all"] = Field(
        default="matrices",
        description="Parameters with weight decay. matrices: only weights of linear layers and convolutions."
        " authors: also position tables, bias tables, temperatures and other parameters of two dimensions or more,"
        " except those in the model's no_weight_decay(), as in the DeiT code. all: everything except no_decay.",
    )
    no_decay: tuple[str, ...] = Field(
        default=(),
        description='With decay "all": substrings of parameter names without weight decay ("norm1.").',
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Decays of AdamW's two averages.")
    eps: float = Field(default=1e-8, gt=0, description="Epsilon in AdamW's denominator.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of SGD.")
    rates: dict[str, float] = Field(
        default_factory=dict,
        description="Factors on the learning rate by module: {backbone = 0.1}; the longest matching name applies.",
    )
    schedule: str = Field(
        default="cosine",
        description="Schedule of the learning rate after the warm-up: cosine or linear down to min_lr; poly, down to"
        " min_lr as (1 - step / steps) ** power; steps, times gamma after each epoch in milestones; constant.",
    )
    schedule_options: Options = Field(default_factory=dict, description="Further options of the schedule.")
    schedules: dict[str, str] = Field(
        default_factory=dict,
        description="Schedules of other settings, from a first to a last value:"
        ' {weight_decay = "cosine(0.04, 0.4)"}.',
    )
    power: float = Field(default=1.0, gt=0, description="Exponent of the schedule poly.")
    milestones: tuple[int, ...] = Field(
        default=(), description="Epochs after which the schedule steps drops."
    )
    gamma: float = Field(
        default=0.1, gt=0, le=1, description="Factor of the schedule steps at each milestone."
    )
    warmup_epochs: int = Field(default=5, ge=0, description="Epochs of warm-up from warmup_lr to the peak.")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="Length of the warm-up in steps; unset: warmup_epochs."
    )
    warmup_lr: float = Field(
        default=1e-6,
        ge=0,
        description="Learning rate at the start of the warm-up; not scaled with the batch.",
    )
    min_lr: float = Field(
        default=1e-5, ge=0, description="Learning rate at the end of the schedule; not scaled with the batch."
    )
    cooldown_epochs: int = Field(default=0, ge=0, description="Epochs at the end with min_lr.")
    clip: float = Field(default=0.0, ge=0, description="Maximum gradient norm; 0: no clipping.")
    clip_by: ClipBy = Field(
        default="global",
        description="global: one norm over all parameters; each: every parameter is clipped by its own norm.",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Layer-wise decay: ratio of the learning rates of consecutive groups of the backbone's stages().",
    )
    faithful: bool = Field(
        default=False,
        description="Repeat the released code named in `release` where it differs from the paper:"
        ' decay = "authors", and Nesterov momentum in sgd. deit (also XCiT and Twins): the learning rate changes'
        " once per epoch, the first two epochs run at warmup_lr, no cooldown; convit: as deit, with weight decay"
        " also on the parameters in no_weight_decay(); gcvit: the cosine includes the warm-up.",
    )
    release: Literal["deit", "convit", "gcvit"] = Field(
        default="deit", description="The released code that faithful repeats."
    )
    ema: float = Field(default=0.0, ge=0, lt=1, description="EMA decay of the weights; 0: no EMA.")
    ema_warmup: bool = Field(
        default=True, description="Bound the EMA decay by (1 + step) / (10 + step) in the first steps."
    )

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        pick(OPTIMIZERS, name, "optimizer")
        return name

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, name: str) -> str:
        pick(SCHEDULES, name, "schedule")
        return name

    @field_validator("schedules")
    @classmethod
    def _schedules(cls, table: dict[str, str]) -> dict[str, str]:
        for key, text in table.items():
            _ends(key, text)
        return table

    @field_validator("rates")
    @classmethod
    def _rates(cls, table: dict[str, float]) -> dict[str, float]:
        for name, factor in table.items():
            if not factor >= 0:
                raise ValueError(f"optim.rates.{name} is at least 0; got {factor!r}.")
        return table

    def peak(self, batch_size: int) -> float:
        """The peak learning rate for a global batch of `batch_size` images."""
        return self.lr * batch_size / self.lr_batch if self.lr_batch else self.lr

    def warmup(self, steps_per_epoch: int) -> int:
        """The length of the warm-up in steps."""
        return self.warmup_epochs * steps_per_epoch if self.warmup_steps is None else self.warmup_steps

    def rate(
        self, *, epochs: int, steps_per_epoch: int, batch_size: int, total: int | None = None
    ) -> Callable[[int], float]:
        """The learning rate as a function of the step, counted from 0; `total` steps, None: all of `epochs`.

        If `min_lr` or `warmup_lr` is above the peak, the peak is used instead.
        """
        peak = self.peak(batch_size)
        faithful = self.faithful and self.schedule == "cosine"
        bounded = peak if not faithful else float("inf")  # not bounded in the released code
        span = Span(
            total=epochs * steps_per_epoch if total is None else total,
            per_epoch=steps_per_epoch,
            epochs=epochs,
            peak=peak,
            start=min(self.warmup_lr, bounded),
            floor=min(self.min_lr, bounded),
            warmup=self.warmup(steps_per_epoch),
            cooldown=self.cooldown_epochs * steps_per_epoch,
            power=self.power,
            milestones=self.milestones,
            gamma=self.gamma,
            options=self.schedule_options,
        )
        if faithful and self.release != "gcvit":
            span = replace(span, warmup=self.warmup_epochs * steps_per_epoch)
        return SCHEDULES[RELEASES[self.release] if faithful else self.schedule](span)

    def other_schedules(self, *, total: int, steps_per_epoch: int) -> dict[str, Callable[[int], float]]:
        """The settings in `schedules` as functions of the step."""
        functions = {}
        for key, text in self.schedules.items():
            name, first, last = _ends(key, text)
            epochs = -(-total // steps_per_epoch)
            span = Span(total=total, per_epoch=steps_per_epoch, epochs=epochs, peak=first, floor=last)
            functions[key] = SCHEDULES[name](replace(span, start=first, options=self.schedule_options))
        return functions


def _ends(key: str, text: str) -> tuple[str, float, float]:
    """Parse `cosine(0.04, 0.4)` into the schedule, the first and the last value of a setting."""
    known = ("weight_decay", "momentum", "eps", "beta1", "beta2")
    if key not in known:
        raise ValueError(f"optim.schedules has no setting {key!r}.{suggestion(key, known)}")
    calls = parse_calls(text, f"optim.schedules.{key}")
    if len(calls) != 1 or len(calls[0].args) != 2 or calls[0].kwargs:
        raise ValueError(f"optim.schedules.{key} reads SCHEDULE(FIRST, LAST); got {text!r}.")
    pick(SCHEDULES, calls[0].name, "schedule")
    first, last = (float(v) for v in calls[0].args)
    return calls[0].name, first, last


def build(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of all trainable parameters of `model`; `set_values` sets its learning rates before each step.

    A task may define its own `parameter_groups`.
    """
    own = model.parameter_groups(config) if hasattr(model, "parameter_groups") else None  # type: ignore[operator]
    grouped = groups(model, config) if own is None else own
    for group in grouped:
        group.setdefault("scale", 1.0)
    return pick(OPTIMIZERS, config.name, "optimizer").build(grouped, config)


def allocate(optimizer: Optimizer) -> None:
    """Allocate the averages of a fused AdamW on a CPU before the first step, as that step would.

    Allocated between forward and backward pass, they would stay among freed activations, in the way of the next ones.
    """
    if not isinstance(optimizer, torch.optim.AdamW) or not optimizer.defaults["fused"]:
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.device.type == "cpu" and type(p) is nn.Parameter and p not in optimizer.state:
                averages = {
                    name: torch.zeros_like(p, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")
                }
                optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32), **averages}


def groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups with equal `weight_decay` and `scale`, the factor on the learning rate."""
    scales = _scales(model, config.layer_decay)
    rates = _rates(model, config.rates)
    undecayed = _undecayed(model, config)
    table: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = scales.get(name, 1.0) * rates.get(name, 1.0)
            key = (0.0 if name in undecayed else config.weight_decay, scale)
            table.setdefault(key, []).append(parameter)
    return [{"params": p, "weight_decay": decay, "scale": scale} for (decay, scale), p in table.items()]


def set_values(optimizer: Optimizer, lr: float, values: Mapping[str, float] | None = None) -> None:
    """Set the learning rate of every group, times its `scale`, and other settings by name.

    A weight decay of 0 stays 0. beta1, beta2: elements of `betas`.

    Raises:
        ValueError: for a setting that the optimizer does not have.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
        for name, value in (values or {}).items():
            if name in ("beta1", "beta2") and "betas" in group:
                first, second = group["betas"]
                group["betas"] = (value, second) if name == "beta1" else (first, value)
            elif name not in group:
                kind = type(optimizer).__name__
                raise ValueError(f"{kind} has no setting {name!r} that a schedule could change.")
            elif name != "weight_decay" or group.setdefault("decays", group["weight_decay"] > 0):
                group[name] = value


def pack(optimizer: Optimizer, model: nn.Module) -> State:
    """The optimizer state, as tensors named by parameter ("backbone.norm.weight/exp_avg")."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def unpack(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore the state from `pack`; each tensor gets the device and memory format of its parameter."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        home = torch.empty_like(parameter) if value.shape == parameter.shape else None
        kept = value.to(parameter.device, copy=True) if home is None else home.detach().copy_(value)
        optimizer.state[parameter][entry] = kept


def _undecayed(model: nn.Module, config: OptimConfig) -> set[str]:
    """Names of the parameters without weight decay."""
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
    """Layer-wise learning rate factor of each parameter of a backbone; 1 for parameters outside it."""
    if layer_decay == 1.0:
        return {}
    backbones = {
        n: m for n, m in model.named_modules() if re.fullmatch(r"(.*\.)?backbone", n) and hasattr(m, "stages")
    }
    scales: dict[str, float] = {}
    for prefix, backbone in backbones.items():
        stages: list[list[nn.Module]] = backbone.stages()
        depth = {p: i for i, group in enumerate(stages) for module in group for p in module.parameters()}
        for name, parameter in backbone.named_parameters():
            # Parameters outside the stages (class token, position table) have the factor of the stem.
            scales[f"{prefix}.{name}"] = layer_decay ** (len(stages) - depth.get(parameter, 0))
    return scales


def _rates(model: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """The factor in `optim.rates` of each parameter; the longest matching module name applies.

    Names are relative to the model; those of other modules of a task are relative to the task.

    Raises:
        ValueError: for a module without parameters.
    """
    factors: dict[str, float] = {}
    names = [name for name, _ in model.named_parameters()]
    for module in sorted(rates, key=len):
        inside = [name for name in names if f".{name}".startswith((f".{module}.", f".model.{module}."))]
        if not inside:
            raise ValueError(f"optim.rates: no module {module!r}.{suggestion(module, _modules(names))}")
        factors |= dict.fromkeys(inside, rates[module])
    return factors


def _modules(names: Iterable[str]) -> set[str]:
    """Names of the modules with parameters, up to two levels deep."""
    parts = [name.removeprefix("model.").split(".")[:-1] for name in names]
    return {".".join(p[:depth]) for p in parts for depth in (1, 2) if len(p) >= depth}
