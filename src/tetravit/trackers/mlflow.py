"""MLflow. Its own settings decide where to: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tetravit.trackers.base import RunInfo, Tracker

LONGEST = 500  # characters of a parameter


class Mlflow(Tracker):
    """A resumed run continues the same MLflow run."""

    package = extra = "mlflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    def open(self, run: RunInfo, identity: str | None) -> str:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if identity is not None:
            self._id = identity
            self._client.update_run(identity, status="RUNNING")
            return identity
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tetravit")
        known = self._client.get_experiment_by_name(title)
        experiment = known.experiment_id if known else self._client.create_experiment(title)
        self._id = str(self._client.create_run(experiment, run_name=run.folder.name).info.run_id)
        for name, value in _flat(run.recipe).items():
            self._client.log_param(self._id, name, str(value)[:LONGEST])
        self._client.log_text(self._id, "\n".join(f"{label}: {text}" for label, text in run.plan), "plan.txt")
        return self._id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in values.items()])

    def picture(self, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ending = "png" if data.startswith(b"\x89PNG") else "jpg"
            path = Path(folder) / f"{name.rpartition('/')[2]}.{ending}"
            path.write_bytes(data)
            self._client.log_artifact(self._id, str(path), "report")

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} as {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


TRACKERS = {"mlflow": Mlflow}
