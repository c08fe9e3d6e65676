"""`tetravit predict`: classes, objects or label maps of images.

The options below apply to every model; predictors declare further ones, which are added to the signature.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tetravit.cli.base import (
    AcceptLicense,
    Trust,
    is_exported,
    print_rows,
    print_table,
    say,
    way_of,
    with_options,
)
from tetravit.cli.base import optimized as optimized_form
from tetravit.cli.parts.bulk import (
    Data,
    DryRun,
    EngineName,
    EngineOptions,
    Only,
    Processes,
    To,
    Unit,
    run_bulk,
)
from tetravit.predictors import PREDICTORS, Option, Output, Predictor, Writer, stream
from tetravit.predictors.base import function

if TYPE_CHECKING:
    from tetravit.predictors.parts.predictions import Prediction, Source


def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="[WEIGHTS] IMAGE...",
            help="A run folder, a weights file, a published name or an exported file, unless --model gives it; then "
            "image or video files, folders, quoted patterns, lists (.txt), or - for a list on standard input.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="The model; then every argument is an image.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per call of the model.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    draw: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each image, or video, with its predictions drawn into it."),
    ] = None,
    webcam: Annotated[
        int | None,
        typer.Option(metavar="N", help="Predict on frames of camera N, until Ctrl-C (extra `video`)."),
    ] = None,
    optimized: Annotated[
        bool,
        typer.Option(
            "--optimize",
            help="Run the model in the way that is fastest on this machine. Finding it takes seconds, once: "
            "`tetravit cache list`.",
        ),
    ] = False,
    accept_license: AcceptLicense = False,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per image.")] = False,
    data: Data = None,
    to: To = None,
    engine: EngineName = "local",
    processes: Processes = 0,
    unit: Unit = 1000,
    engine_options: EngineOptions = None,
    only: Only = None,
    dry_run: DryRun = False,
    **given: Any,
) -> None:
    """Predict classes, objects or label maps of images."""
    if data is not None:
        names = [*([model] if model is not None else []), *images]
        if len(names) != 1:
            raise ValueError(f"predict MODEL --data DIR --to OUT takes no images; got {len(names)} names.")
        run_bulk(
            "predict",
            names[0],
            data,
            to,
            engine=engine,
            processes=processes,
            unit=unit,
            engine_options=engine_options,
            only=only,
            dry_run=dry_run,
            batch=batch or 32,
            device=device,
            accept_license=accept_license,
            options=_parsed(given),
        )
        return
    from tetravit.benchmark.memory import peak_so_far_mib
    from tetravit.draw import free_name
    from tetravit.files import named
    from tetravit.models import load
    from tetravit.predictors.parts.predictions import Frame
    from tetravit.predictors.parts.sources import find_images
    from tetravit.predictors.parts.video import Videos, expanded
    from tetravit.predictors.parts.video import webcam as webcam_frames
    from tetravit.world import pick_device

    if model is None:
        model, *images = images
        if not images and webcam is None:
            raise ValueError(_what_is_missing(model))
    where = pick_device(device)
    values = _parsed(given)
    files = find_images(images)
    sources: Iterable[Source] = expanded(files) if webcam is None else webcam_frames(webcam)
    exported = is_exported(model)
    if exported and optimized:
        raise ValueError(f"{model} is exported: it runs as it is. --optimize takes weights.")
    loaded: Any = _program(model, trust) if exported else load(model, accept_license=accept_license)
    row = PREDICTORS[loaded.kind]
    for name in values:
        if name not in row.names:
            raise ValueError(f"{_flag(name)} is for {_nouns(name)}s; {model} is a {row.noun}.")
    writers = _writers(row, loaded, files, values)
    settings = {o.name: values[o.name] for o in row.options if o.name in values}
    for writer in writers:
        settings |= writer.settings
    if optimized:
        loaded = optimized_form(loaded.to(where))
        started = way_of(loaded)
    if draw is not None:
        draw.mkdir(parents=True, exist_ok=True)
    bad, total, drawn, rows, hints = 0, 0, set[Path](), [], []
    videos = Videos(draw or Path())
    if webcam is not None:
        batch = batch or 1
    for prediction in _until_interrupted(stream(loaded, sources, batch_size=batch, device=where, **settings)):
        image, total = prediction.image, total + 1
        if prediction.error is not None:
            bad += 1
            say(f"tetravit predict: {image}: {prediction.error}.")
        else:
            if hint := prediction.hint():
                hints.append(f"{image}: {hint}")
            if draw is not None and isinstance(image, Frame):
                videos.add(prediction)
            elif draw is not None:
                target = free_name(draw, Path(str(image)), drawn)
                with named(target):
                    prediction.draw().save(target)
            for writer in writers:
                writer.add(prediction)
        if as_json:
            print_rows([prediction.to_dict()])
        elif prediction.error is None:
            rows.append([image, *prediction.cells()])
    if rows:
        width = max(len(row) for row in rows) - 1
        print_table(["image", *(f"{i}." for i in range(1, width + 1))], rows)
    videos.close()
    if bad == total:
        raise ValueError(f"None of {bad} images can be read." if bad > 1 else "The image cannot be read.")
    if bad:
        say(f"{bad} of {total} images cannot be read.")
    if drawn:
        say(f"Drew {len(drawn)} images into {draw}.")
    if videos.files:
        say(f"Drew {', '.join(map(str, videos.files))}.")
    for writer in writers:
        say(writer.close())
    if optimized and way_of(loaded) != started:
        say(f"Ran with {way_of(loaded)} in the end.")
    if hints:
        more = f" The same holds for {len(hints) - 1} more." if len(hints) > 1 else ""
        say(f"tetravit predict: {hints[0]}.{more}")
    if hints or "side" in values or "window" in values:
        peak = peak_so_far_mib(where)
        say(f"Peak memory: {peak:,.0f} MiB." if peak == peak else "Peak memory: unknown on this device.")


def _program(file: str, trust: bool) -> Any:
    """An exported file in place of a model."""
    from tetravit.exports import load_program

    return load_program(file, trust=trust)


def _what_is_missing(name: str) -> str:
    """The error for a single argument: weights without images, or an image without weights."""
    from tetravit.data.files import is_image

    if is_image(Path(name).name):
        return (
            f"No model: tetravit predict MODEL {name}. A model is a run folder, a weights file, or NAME.TAG of"
            " `tetravit list weights`."
        )
    return f"No images: tetravit predict {name} IMAGE..."


def _until_interrupted(predictions: "Iterator[Prediction]") -> "Iterator[Prediction]":
    """End the predictions on Ctrl-C; finished ones are written."""
    try:
        yield from predictions
    except KeyboardInterrupt:
        say("tetravit predict: stopped.")


def _writers(row: Predictor, model: Any, files: Sequence[Path], values: dict[str, Any]) -> list[Writer]:
    """The writers selected by options.

    Raises:
        ValueError: for an option that requires another one.
    """
    writers = []
    for output in row.outputs:
        wanted = output.option.name in values
        for option in output.others:
            if option.name in values and not wanted:
                raise ValueError(f"{option.flag} goes with {output.option.flag}.")
        if wanted:
            names = [o.name for o in (output.option, *output.others) if o.name in values]
            writers.append(function(output.open)(model, files, **{name: values[name] for name in names}))
    return writers


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """Parsed values of the given options.

    Raises:
        ValueError: if a value cannot be parsed.
    """
    readers = {name: option.read for name, (option, _) in _declared().items()}
    values = {}
    for name, value in given.items():
        if value is None or value is False:
            continue
        try:
            values[name] = value if value is True else readers[name](value)
        except ValueError as error:
            raise ValueError(f"{_flag(name)} {error}") from None
    return values


def _declared() -> dict[str, tuple[Option, str]]:
    """Every predictor option, with its help per kind of model."""
    helps: dict[str, dict[str, list[str]]] = {}
    options: dict[str, Option] = {}
    for row in PREDICTORS.values():
        outputs: tuple[Output, ...] = row.outputs
        for option in (*row.options, *(o for out in outputs for o in (out.option, *out.others))):
            first = options.setdefault(option.name, option)
            if (first.metavar, first.read) != (option.metavar, option.read):
                raise ValueError(f"Two predictors declare {option.flag} differently.")
            helps.setdefault(option.name, {}).setdefault(option.help, []).append(row.noun)
    return {
        name: (
            option,
            " ".join(
                f"{text} ({' and '.join(f'{n}s' for n in nouns)})" for text, nouns in helps[name].items()
            ),
        )
        for name, option in options.items()
    }


def _flag(name: str) -> str:
    return _declared()[name][0].flag


def _nouns(name: str) -> str:
    return "s and ".join(row.noun for row in PREDICTORS.values() if name in row.names)


VERBS = {"predict": with_options(predict, _declared())}
