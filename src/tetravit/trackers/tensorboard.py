"""TensorBoard: event files in RUN/tensorboard; `tensorboard --logdir runs` shows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tetravit.trackers.base import RunInfo, Tracker


class TensorBoard(Tracker):
    """Resuming purges events after the current step."""

    package = extra = "tensorboard"

    def __init__(self) -> None:
        self._writer: Any = None
        self._folder = Path()

    def open(self, run: RunInfo, identity: str | None) -> str:
        self._folder = run.folder / "tensorboard"
        self._begin(run.first_step + 1 if identity else None)
        if identity is None:
            self._writer.add_text("plan", "\n".join(f"- {label}: {text}" for label, text in run.plan), 0)
            self._writer.add_text(
                "recipe", "    " + json.dumps(run.recipe, indent=1).replace("\n", "\n    "), 0
            )
        return self._folder.name

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        self._writer.close()
        self._begin(step + 1)

    def picture(self, name: str, data: bytes) -> None:
        import io

        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _begin(self, purge: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge)


TRACKERS = {"tensorboard": TensorBoard}
