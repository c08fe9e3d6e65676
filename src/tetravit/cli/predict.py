"""`tetravit predict`: what is in these images."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import AcceptLicense, print_rows, print_table, say
from tetravit.cli.base import optimized as optimized_form


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
    topk: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Classes per image (classifiers; 5).")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per call of the model.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each image with the answer drawn into it here.")
    ] = None,
    save_maps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each label map here, as PNG (segmenters).")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Slide a window of this side (segmenters; detectors: tiles)."),
    ] = None,
    stride: Annotated[int | None, typer.Option(metavar="PX", help="From one window to the next.")] = None,
    scales: Annotated[
        str | None, typer.Option(metavar="F,F,...", help="Average over these sizes (segmenters): 0.5,1,1.5.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average over mirrored images too (segmenters).")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(metavar="SCORE", help="Leave out objects below (detectors; 0.3).")
    ] = None,
    side: Annotated[
        str | None,
        typer.Option(metavar="PX|own", help="Resize the short side to this; own: not at all (detectors)."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write COCO's result format here (detectors).")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="COCO's JSON of the images: its ids go into --results (detectors)."
        ),
    ] = None,
    optimized: Annotated[
        bool, typer.Option("--optimize", help="First find the fastest way to run the model on this machine.")
    ] = False,
    accept_license: AcceptLicense = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per image.")] = False,
) -> None:
    """Ask a model about images: files, folders and patterns."""
    from tetravit.benchmark.memory import peak_so_far_mib
    from tetravit.data.decode import decode
    from tetravit.draw import free_name
    from tetravit.models import load
    from tetravit.predict import find_images
    from tetravit.predict import predict as ask
    from tetravit.predict.numbers import Numbers, numbers
    from tetravit.world import pick_device

    if model is None:
        model, *images = images
        if not images:
            raise ValueError(f"Say which images: tetravit predict {model} IMAGE...")
    where = pick_device(device)
    looks: dict[str, Any] = {
        "window": window,
        "stride": stride,
        "scales": _numbers(scales),
        "flip": "on" if flip else None,
    }
    looks |= {"threshold": threshold, "side": int(side) if side and _is_number(side) else side}
    files = find_images(images)
    loaded = load(model, accept_license=accept_license)
    if save_maps is not None and loaded.task != "segment":
        raise ValueError(f"--save-maps is for the task segment; {model} can {loaded.task}.")
    if results is not None and loaded.task != "detect":
        raise ValueError(f"--results is for the task detect; {model} can {loaded.task}.")
    if annotations is not None and results is None:
        raise ValueError("--annotations says which ids --results writes; got no --results.")
    ids: Numbers | None = None
    if results is not None:
        names = loaded.class_names or [str(i) for i in range(loaded.num_classes)]
        ids = numbers(files, names, annotations)
        looks["categories"] = ids.categories
    if optimized:
        loaded = optimized_form(loaded.to(where))
    answers = ask(loaded, files, topk=topk, batch_size=batch, device=where, **looks)
    for folder in (draw, save_maps):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    bad, taken, rows = 0, set[Path](), []
    mapped = set[Path]()
    found: list[dict[str, Any]] = []
    hints: list[str] = []
    for prediction in answers:
        image, error = prediction.image, prediction.error
        if error is not None:
            bad += 1
            say(f"tetravit predict: {image}: {error}.")
        else:
            if hint := prediction.hint():
                hints.append(f"{image}: {hint}")
            if draw is not None:
                prediction.picture(decode(image)).save(free_name(draw, image, taken))
            if save_maps is not None:
                prediction.map_picture().save(free_name(save_maps, image, mapped))  # type: ignore[attr-defined]
            if ids is not None:
                number = ids.images[image]
                found += [{"image_id": number, **row} for row in prediction.results()]  # type: ignore[attr-defined]
        if as_json:
            said = {"error": error} if error is not None else prediction.facts()
            print_rows([{"image": str(image), **said}])
        elif error is None:
            rows.append([image, *prediction.cells()])
    if rows:
        width = max(len(row) for row in rows) - 1
        print_table(["image", *(f"{i}." for i in range(1, width + 1))], rows)
    if bad == len(files):
        raise ValueError(f"None of {bad} images can be read." if bad > 1 else "The image cannot be read.")
    if bad:
        say(f"{bad} of {len(files)} images cannot be read.")
    if draw is not None:
        say(f"Drew {len(taken)} images into {draw}.")
    if save_maps is not None:
        say(f"Wrote {len(mapped)} label maps into {save_maps}.")
    if results is not None and ids is not None:
        results.write_text(json.dumps(found))
        say(f"Wrote {len(found)} objects into {results}. {ids.told}")
    if hints:
        more = f" The same holds for {len(hints) - 1} more." if len(hints) > 1 else ""
        say(f"tetravit predict: {hints[0]}.{more}")
    if hints or side is not None or window is not None:
        peak = peak_so_far_mib(where)
        say(f"Peak memory: {peak:,.0f} MiB." if peak == peak else "Peak memory: not known here.")


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _numbers(text: str | None) -> tuple[float, ...] | None:
    """What --scales says; None: nothing.

    Raises:
        ValueError: if it does not read.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales takes numbers with commas between them; got {text!r}.") from None
