"""Section [run] of a recipe."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tetravit.engine.precision import Precision
from tetravit.engine.strategies import known_strategy


class RunConfig(BaseModel):
    """The `[run]` section of a recipe: how and where a run computes, and what it keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, description="Seed of all random numbers of a run.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Precision = Field(
        default="auto", description="Of the computation; auto: bf16 on GPUs that have it, else float32."
    )
    accumulate: int = Field(default=1, ge=1, description="Micro-batches that share one optimisation step.")
    strategy: str = Field(
        default="auto",
        description="How several processes share the work: single, ddp, fsdp (gradients, optimizer state and"
        " weights in shards); auto: single for one process, else ddp.",
    )
    compile: bool = Field(default=False, description="Compile the model with torch.compile.")
    memory_format: Literal["contiguous", "channels_last"] = Field(
        default="contiguous", description="Memory layout of images and convolution weights."
    )
    kernels: Literal["repeatable", "fastest"] = Field(
        default="repeatable",
        description="repeatable: deterministic kernels where torch has them; fastest: any.",
    )
    log_steps: int = Field(default=10, ge=1, description="Steps per line of the log.")
    evaluate_epochs: int = Field(
        default=1, ge=0, description="Epochs between evaluations; 0: at the end alone."
    )
    evaluate_steps: int = Field(
        default=0, ge=0, description="Steps between evaluations; 0: evaluate_epochs counts."
    )
    save_steps: int = Field(default=0, ge=0, description="Steps between checkpoints; 0: never.")
    save_minutes: float = Field(default=10.0, ge=0, description="Minutes between checkpoints; 0: never.")
    save_epochs: int = Field(default=1, ge=0, description="Epochs between checkpoints; 0: never.")
    recompute: bool = Field(
        default=False,
        description="Compute the blocks of the model again in the backward pass, which takes less memory and about a"
        " third more time.",
    )
    hang_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Seconds without a sign of life after which a rank is named and the others end; 0: never.",
    )
    save_in_background: bool = Field(
        default=True, description="Write checkpoints from a copy in memory while training goes on."
    )
    keep: int = Field(default=3, ge=2, description="How many of the newest checkpoints are kept.")
    on_full: Literal["warn", "stop"] = Field(
        default="warn", description="When a checkpoint cannot be written: warn and train on, or stop."
    )
    on_nan: Literal["stop", "rollback"] = Field(
        default="stop",
        description="When a loss or a gradient is not finite: stop; or rollback, go on from the newest checkpoint"
        " with other random numbers and half the learning rate, at most three times.",
    )
    rollback_steps: int = Field(
        default=500,
        ge=0,
        description="Steps past the bad one that run with other random numbers and the lower learning rate.",
    )
    on_collapse: Literal["warn", "stop"] = Field(
        default="warn",
        description="When a self-supervised task reports a collapse: warn and train on, or stop.",
    )

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, name: str) -> str:
        return name if name == "auto" else known_strategy(name)
