"""Section [run] of a recipe."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tetravit.engine.precision import Precision
from tetravit.engine.strategies import known_strategy


class RunConfig(BaseModel):
    """The `[run]` section of a recipe: device, precision, logging and checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, description="Random seed of the run.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Precision = Field(
        default="auto",
        description="Precision of the computation; auto: bf16 on GPUs that support it, else float32.",
    )
    accumulate: int = Field(
        default=1, ge=1, description="Micro-batches per optimizer step (gradient accumulation)."
    )
    strategy: str = Field(
        default="auto",
        description="How several processes share the work: single, ddp, fsdp (gradients, optimizer state and"
        " weights sharded); auto: single for one process, else ddp.",
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
        default=1, ge=0, description="Epochs between evaluations; 0: at the end only."
    )
    evaluate_steps: int = Field(
        default=0, ge=0, description="Steps between evaluations; 0: see evaluate_epochs."
    )
    save_steps: int = Field(default=0, ge=0, description="Steps between checkpoints; 0: never.")
    save_minutes: float = Field(default=10.0, ge=0, description="Minutes between checkpoints; 0: never.")
    save_epochs: int = Field(default=1, ge=0, description="Epochs between checkpoints; 0: never.")
    recompute: bool = Field(
        default=False,
        description="Recompute the blocks of the model in the backward pass (gradient checkpointing): less memory,"
        " about a third more time.",
    )
    hang_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Seconds without a heartbeat after which a rank is reported and the others end; 0: never.",
    )
    save_in_background: bool = Field(
        default=True, description="Write checkpoints from a copy in memory while training continues."
    )
    keep: int = Field(default=3, ge=2, description="Number of newest checkpoints to keep.")
    on_full: Literal["warn", "stop"] = Field(
        default="warn", description="When a checkpoint cannot be written: warn and continue, or stop."
    )
    on_nan: Literal["stop", "rollback"] = Field(
        default="stop",
        description="When a loss or a gradient is not finite: stop; or rollback, continue from the newest checkpoint"
        " with other random numbers and half the learning rate, at most three times.",
    )
    rollback_steps: int = Field(
        default=500,
        ge=0,
        description="Steps after the bad one that use other random numbers and the lower learning rate.",
    )
    on_collapse: Literal["warn", "stop"] = Field(
        default="warn",
        description="When a self-supervised task reports a collapse: warn and continue, or stop.",
    )

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, name: str) -> str:
        return name if name == "auto" else known_strategy(name)
