"""Weights & Biases, configured by its environment variables: WANDB_PROJECT, WANDB_MODE=offline, WANDB_DIR, ..."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tetravit.trackers.base import RunInfo, Tracker


class Wandb(Tracker):
    """A resumed run continues with the same id; the horizontal axis is the step."""

    package = extra = "wandb"

    def __init__(self) -> None:
        self._run: Any = None
        self._wandb: Any = None

    def open(self, run: RunInfo, identity: str | None) -> str:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tetravit"),
            name=run.folder.name,
            id=identity or run.run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=dict(run.recipe),
            notes="\n".join(f"{label}: {text}" for label, text in run.plan),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def picture(self, name: str, data: bytes) -> None:
        from PIL import Image

        self._run.log({name: self._wandb.Image(Image.open(io.BytesIO(data)))})

    def artifact(self, path: Path) -> None:
        kind = "model" if path.suffix == ".safetensors" else "report"
        artifact = self._wandb.Artifact(f"{self._run.id}-{path.stem}", type=kind)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


TRACKERS = {"wandb": Wandb}
