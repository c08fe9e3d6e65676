"""`tetravit predict`: what is in these images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tetravit.cli.base import AcceptLicense, print_rows, print_table, say

if TYPE_CHECKING:
    from tetravit.predict import Prediction


def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="[WEIGHTS] IMAGE...",
            help="A run folder, a weights file or a published name, unless --model says it; "
            "then image files, folders, or quoted patterns.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="The weights; then every argument is an image.")
    ] = None,
    topk: Annotated[int, typer.Option(metavar="N", min=1, help="Classes per image.")] = 5,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call of the model.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each image with its labels into this folder.")
    ] = None,
    accept_license: AcceptLicense = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per image.")] = False,
) -> None:
    """Classify images: files, folders and patterns."""
    from tetravit.engine.distributed import pick_device
    from tetravit.models import load
    from tetravit.predict import find_images
    from tetravit.predict import predict as classify

    if model is None:
        model, *images = images
        if not images:
            raise ValueError(f"Say which images: tetravit predict {model} IMAGE...")
    where = pick_device(device)
    files = find_images(images)
    if draw is not None:
        draw.mkdir(parents=True, exist_ok=True)
    bad, taken, rows = 0, set[Path](), []
    loaded = load(model, accept_license=accept_license)
    for prediction in classify(loaded, files, topk=topk, batch_size=batch, device=where):
        if prediction.error is not None:
            bad += 1
            say(f"tetravit predict: {prediction.image}: {prediction.error}.")
        elif draw is not None:
            _draw(prediction, draw, taken)
        if as_json:
            print_rows([_json(prediction)])
        elif prediction.error is None:
            rows.append([prediction.image, *(f"{g.name}  {100 * g.score:.1f} %" for g in prediction.guesses)])
    if rows:
        width = max(len(row) for row in rows) - 1
        print_table(["image", *(f"{i}." for i in range(1, width + 1))], rows)
    if bad == len(files):
        raise ValueError(f"None of {bad} images can be read." if bad > 1 else "The image cannot be read.")
    if bad:
        say(f"{bad} of {len(files)} images cannot be read.")
    if draw is not None:
        say(f"Drew {len(taken)} images into {draw}.")


def _draw(prediction: "Prediction", folder: Path, taken: set[Path]) -> None:
    from tetravit.data.decode import decode
    from tetravit.draw import free_name, labelled

    picture = labelled(decode(prediction.image), [(g.name, g.score) for g in prediction.guesses])
    picture.save(free_name(folder, prediction.image, taken))


def _json(prediction: "Prediction") -> dict[str, object]:
    if prediction.error is not None:
        return {"image": str(prediction.image), "error": prediction.error}
    guesses = [{"index": g.index, "class": g.name, "score": round(g.score, 6)} for g in prediction.guesses]
    return {"image": str(prediction.image), "top": guesses}
