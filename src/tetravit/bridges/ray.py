"""A run on Ray Train: Ray starts and restarts the processes; the run starts or continues in its folder.

Needs the extra `ray`. The folder is on a disk shared by all nodes, or on that of rank 0.
"""

from pathlib import Path
from typing import Any

from tetravit.recipe import Recipe, validated
from tetravit.runs import train


def _worker(config: dict[str, Any]) -> None:
    train(validated(config["recipe"]), config["folder"], continuing=True)


def train_on_ray(
    recipe: Recipe,
    folder: str | Path,
    *,
    workers: int | tuple[int, int],
    use_gpu: bool = True,
    storage_path: str | None = None,
    max_failures: int = -1,
) -> Any:
    """Run a recipe on the connected Ray cluster; returns Ray's result.

    Args:
        recipe: what to run.
        folder: of the run; the same call continues it.
        workers: processes, one per device; a pair: minimum and maximum (elastic).
        use_gpu: whether each worker gets a GPU.
        storage_path: for Ray's own files; None: its default.
        max_failures: maximum number of restarts; -1: unlimited.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise ValueError("Ray Train is not installed: pip install 'tetravit[ray]'.") from None
    count: Any = workers  # a pair is elastic
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "folder": str(Path(folder).absolute())},
        scaling_config=ScalingConfig(num_workers=count, use_gpu=use_gpu),
        run_config=RunConfig(
            name=Path(folder).name,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    return trainer.fit()
