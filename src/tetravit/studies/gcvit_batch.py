"""Whether the logits of an image depend on the other images of its batch: they did in GC ViT's first release."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from tetravit.studies.base import Study

MODELS = ("gcvit_xxtiny", "gcvit_tiny")
SPREAD = 2e-5  # of the largest logit: other batches, other order of summation


def measure(
    *,
    models: Annotated[str, typer.Option(metavar="M,M,...", help="GC ViT models.")] = ",".join(MODELS),
    batch: Annotated[int, typer.Option(metavar="N", min=2, help="Images of the batch.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="The smallest model alone, at 96 pixels.")] = False,
    device: str = "auto",
    on_run: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """One row per model: the largest change of an image's logits, alone and in a batch of others."""
    import torch

    from tetravit.models import create_model
    from tetravit.world import pick_device

    where = pick_device(device)
    for name in [MODELS[0]] if small else [name.strip() for name in models.split(",")]:
        on_run(name)
        torch.manual_seed(0)
        side = 96 if small else 224
        model = create_model(name, image_size=side).eval().to(where)
        images = torch.randn(batch, 3, side, side, device=where)
        with torch.inference_mode():
            together = model(images)
            alone = torch.cat([model(image[None]) for image in images])
        scale = float(alone.abs().max())
        difference = float((together - alone).abs().max())
        yield {
            "model": name,
            "batch": batch,
            "difference": difference,
            "largest_logit": scale,
            "verdict": "independent" if difference <= SPREAD * max(1.0, scale) else "depends on its batch",
        }


STUDIES = {
    "gcvit-batch": Study(
        "Do the logits of an image depend on the images beside it?",
        measure,
        {
            "model": lambda row: row["model"],
            "batch": lambda row: row["batch"],
            "largest change": lambda row: f"{row['difference']:.1e}",
            "largest logit": lambda row: f"{row['largest_logit']:.2f}",
            "verdict": lambda row: row["verdict"],
        },
        source="a fault of GC ViT's first release: global queries were repeated in another order than the windows",
        expected="no change beyond rounding",
        needs="nothing: random weights; seconds",
        small="a few seconds",
    )
}
