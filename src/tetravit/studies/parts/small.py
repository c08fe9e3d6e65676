"""Small models, trained on the digits in a minute or two, for studies that otherwise need published weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

# Alike but for what mixes the tokens: 4 blocks, 64 channels where the family has one width.
MODELS: dict[str, dict[str, Any]] = {
    "xcit_nano_12_p16": {"patch_size": 8, "dim": 64, "depth": 4, "num_heads": 4},
    "convit_tiny": {"patch_size": 4, "dim": 64, "num_heads": 4, "depth": 4, "num_gpsa": 3},
    "deit_tiny": {"patch_size": 4, "dim": 64, "num_heads": 4, "depth": 4},
    "gcvit_xxtiny": {"dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4)},
    "twins_svt_small": {
        "dims": (16, 32, 64, 64), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4),
    },
}  # fmt: skip
SIDE = 32  # pixels of the images


def train_small(
    name: str, folder: Path, *, epochs: int, device: str, on_run: Callable[[str], object], **options: Any
) -> Path:
    """Train the small model `name` on the digits; returns its weights file, trained once per folder."""
    from tetravit.recipe import validated
    from tetravit.runs import train

    run = folder / "_".join([name, *(f"{key}-{value}" for key, value in options.items())])
    if not (run / "last.safetensors").is_file():
        on_run(f"training {run.name} on the digits, {epochs} epochs")
        recipe = validated(
            {
                "epochs": epochs,
                "task": {"name": "classify", "label_smoothing": 0.1},
                "model": {"name": name, "options": {**MODELS[name], **options}},
                "data": {
                    "name": "digits",
                    "image_size": SIDE,
                    "batch_size": 64,
                    "augment": f"affine(10, 0.08, (0.85, 1.15), 8, size={SIDE})",
                    "crop": 1.0,
                    "workers": 0,
                },
                "optim": {"lr": 2e-3, "lr_batch": 0, "warmup_epochs": min(4, epochs), "clip": 1.0},
                "run": {
                    "device": device,
                    "evaluate_epochs": 0,
                    "save_epochs": 0,
                    "save_minutes": 0.0,
                    "log_steps": 1000,
                },
            }
        )
        train(recipe, run, reporters=[])
    return run / "last.safetensors"
