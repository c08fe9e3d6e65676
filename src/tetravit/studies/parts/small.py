"""Small models, trained on the digits in seconds, for studies that otherwise need published weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

# Alike but for what mixes the tokens: 4 blocks, 64 channels where the family has one width.
MODELS: dict[str, dict[str, Any]] = {
    "xcit_nano_12_p16": {"patch_size": 8, "dim": 64, "depth": 4, "num_heads": 4},
    "convit_tiny": {"patch_size": 8, "dim": 64, "num_heads": 4, "depth": 4, "num_gpsa": 3},
    "deit_tiny": {"patch_size": 8, "dim": 64, "num_heads": 4, "depth": 4},
    "gcvit_xxtiny": {"dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4)},
    "twins_svt_small": {
        "dims": (16, 32, 64, 64), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4),
    },
}  # fmt: skip


def train_small(
    name: str, folder: Path, *, epochs: int, device: str, on_run: Callable[[str], object], **options: Any
) -> Path:
    """Train the small model `name` on the digits; returns its weights file, trained once per folder."""
    from tetravit.runs import train
    from tetravit.studies.parts.training import digits_recipe

    run = folder / "_".join([name, *(f"{key}-{value}" for key, value in options.items())])
    if not (run / "last.safetensors").is_file():
        on_run(f"training {run.name} on the digits, {epochs} epochs")
        recipe = digits_recipe(name, {**MODELS[name], **options}, epochs=epochs, device=device)
        train(recipe, run, reporters=[])
    return run / "last.safetensors"
