"""`tetravit explain`: attention and attribution maps, drawn over pictures.

The options below apply to every method; methods declare further ones, which are added to the signature.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from tetravit.cli.base import AcceptLicense, print_rows, print_table, say, with_options
from tetravit.explainers import EXPLAIN, Explanation, methods_of
from tetravit.explainers import explain as explain_one
from tetravit.explainers.parts.explanation import find, refused
from tetravit.predictors.base import Option, numbers

SCALES = ("row", "map", "log")


def explain(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="[video] WEIGHTS",
            help="A run folder, a weights file or a published name. After the word video: maps of every frame.",
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE...]", help="Image files, folders, quoted patterns, lists (.txt)."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Without it: list the methods that apply to the model.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A module of the backbone, several with commas, its number, or all."
        ),
    ] = None,
    head: Annotated[int | None, typer.Option(metavar="N", help="One head, from 0. Default: all.")] = None,
    query: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Query: the pixel whose attention is shown.")
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option("--class", metavar="C", help="A class by name or number. Default: the predicted one."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="S|own", help="Do not crop: resize the short side to S pixels, or keep the size."
        ),
    ] = None,
    draw: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a PNG per picture.")] = None,
    save_maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the raw values per picture: NumPy .npz and a JSON line."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE",
            help="Colour range: row (all heads), map (each head) or log; for a video clip or frame.",
        ),
    ] = None,
    blocks: Annotated[bool, typer.Option(help="Draw each token as a block around its centre.")] = False,
    mean: Annotated[bool, typer.Option("--mean", help="Draw only the mean over the heads.")] = False,
    as_published: Annotated[
        bool,
        typer.Option(
            "--as-published",
            help="Draw as in the authors' scripts: model input, blocks, min-max range per map.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Sanity checks: deletion and insertion scores and curves, and a randomised head."
        ),
    ] = False,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X1,Y1,X2,Y2", help="For --check: box of the object; may be repeated."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For --check: a mask image, nonzero on the object.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Output of a video: .mp4, .gif, or a folder of frames."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    accept_license: AcceptLicense = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture.")] = False,
    **given: Any,
) -> None:
    """Draw attention and attribution maps of a model over pictures."""
    from tetravit.models import load
    from tetravit.world import pick_device

    clip = None
    if weights == "video" and not Path(weights).exists():
        if not images or len(images) != 2:
            raise ValueError("tetravit explain video WEIGHTS CLIP --into FILE: give weights and one clip.")
        weights, clip = images[0], Path(images[1])
        images = []
    if (clip is None) != (into is None):
        raise ValueError("--into FILE is where tetravit explain video writes; a picture has --draw DIR.")
    if (box or mask) and not check:
        raise ValueError("--box and --mask go with --check.")
    _check_exported(weights)
    where = pick_device(device)
    if method is None and images:
        raise ValueError(
            f"No method: tetravit explain {weights} IMAGE... --method NAME; one of {', '.join(EXPLAIN)}."
        )
    if method is not None:
        find(method)
    if clip is None and scale is not None and scale not in SCALES:
        raise ValueError(f"--scale takes one of {', '.join(SCALES)}; got {scale!r}.")
    settings: dict[str, Any] = {"layer": layer, "head": head, "class_": class_, "size": _size(size)}
    settings |= {"query": _point(query), **_parsed(given)}
    model = load(weights, accept_license=accept_license).to(where)
    if clip is not None and into is not None:
        from tetravit.explainers.parts.video import explain_video

        shown: dict[str, Any] = {"heads": "mean" if mean else "each", "scale": scale or "clip"}
        shown |= {"as_published": as_published, "announce": say}
        name = "class-attention" if method is None else find(method)[0]
        count = explain_video(model, clip, into, name, **shown, **settings)
        say(f"Wrote {count} frames into {into}.")
        return
    if method is None:
        _list_methods(model, as_json)
        return
    if check:
        settings |= {"check": True, "boxes": [_box(text) for text in box or ()], "mask": _mask(mask)}
    name, row = find(method)
    if reason := row.refusal(model):
        raise ValueError(refused(name, model, reason))
    if not images and row.needs_image:
        raise ValueError(f"No images: tetravit explain {weights} IMAGE... --method {name}.")
    files: list[Path | None] = [None]
    if images and row.needs_image:
        from tetravit.predictors.parts.sources import find_images

        files = list(find_images(images))
    if draw is not None:
        draw.mkdir(parents=True, exist_ok=True)
    rows, bad, drawn = [], 0, 0
    names: set[Path] = set()
    for file in files:
        try:
            explanation = explain_one(model, file, name, announce=say, **settings)
        except ValueError as error:
            if len(files) == 1 or not _is_bad_image(error):
                raise
            bad += 1
            say(f"tetravit explain: {file}: {error}")
            continue
        for note in explanation.notes:
            say(f"tetravit explain: {note}")
        if draw is not None:
            from tetravit.draw import free_name

            target = free_name(draw, Path(f"{file.stem if file else explanation.model}-{name}.png"), names)
            explanation.draw(
                scale=cast(Any, scale or "row"), blocks=blocks, mean=mean, as_published=as_published
            ).save(target)
            drawn += 1
            if explanation.check is not None:
                from tetravit.explainers.parts.check import picture

                picture(explanation).save(target.with_name(f"{target.stem}-check.png"))
        if save_maps is not None:
            explanation.save(save_maps)
        if as_json:
            print_rows([explanation.to_dict()])
        elif explanation.check is not None:  # one JSON line
            print_rows(
                [{"image": explanation.image, "method": explanation.method, **_short(explanation.check)}]
            )
        else:
            rows += _rows(explanation)
    if rows:
        columns = ["image", "map", "layer", "slice", "grid", "min", "max", "sum", "seen"]
        print_table(columns, rows, right=columns[5:])
    if drawn:
        say(f"Drew {drawn} pictures into {draw}." if drawn > 1 else f"Drew a picture into {draw}.")
    if save_maps is not None:
        say(f"Wrote the maps into {save_maps}.")
    if bad:
        say(f"{bad} of {len(files)} images cannot be read.")
    if bad == len(files):
        raise ValueError(f"None of {bad} images can be read.")


def _rows(explanation: Explanation) -> list[list[object]]:
    """One row for each slice of each map."""
    rows: list[list[object]] = []
    for one in explanation.maps:
        if one.axes == ("layer", "head"):
            _print_heads(one)
            continue
        facts = one.to_dict()
        for i, name in enumerate(one.slices or (one.target,)):
            seen = "-" if one.seen is None else f"{float(one.seen[i]):.4f}"
            values = (f"{facts[key][i]:.4g}" for key in ("min", "max", "sum"))
            grid = f"{one.grid[0]} x {one.grid[1]}"
            rows.append(
                [explanation.image or "-", one.kind, one.layer or "-", name or "-", grid, *values, seen]
            )
    return rows


def _print_heads(one: Any) -> None:
    """A table with one row per layer and one column per head."""
    names = one.details.get("layers") or range(len(one.values))
    heads = [str(i) for i in range(one.grid[1])]
    lines = [
        [name, *(f"{v:.4g}" if v == v else "none" for v in row)]
        for name, row in zip(names, one.values.tolist(), strict=True)
    ]
    print_table(["layer", *heads], lines, title=one.kind, right=heads)


def _short(check: Any) -> dict[str, Any]:
    return {name: value for name, value in check.items() if not name.endswith("_curves")}


def _box(text: str) -> tuple[float, ...]:
    values = numbers(text)
    if len(values) != 4:
        raise ValueError(f"--box takes X1,Y1,X2,Y2 in pixels of the picture; got {text!r}.")
    return values


def _mask(file: Path | None) -> Any:
    """The mask in a file, bool (H0, W0)."""
    if file is None:
        return None
    from tetravit.data.decode import decode

    return (decode(file, layout="decoded") > 0).any(dim=0).numpy()


def _list_methods(model: Any, as_json: bool) -> None:
    methods = methods_of(model)
    if as_json:
        print_rows(
            {"method": name, "about": EXPLAIN[name].about, "why_not": why or None}
            for name, why in methods.items()
        )
        return
    rows = [
        [
            name,
            EXPLAIN[name].about,
            " ".join([*EXPLAIN[name].takes, *(o.name for o in EXPLAIN[name].options)]),
        ]
        for name, why in methods.items()
        if not why
    ]
    print_table(["method", "what it shows", "options"], rows)
    missing = [f"{name} ({why})" for name, why in methods.items() if why]
    if missing:
        say(f"Without meaning for {model.name}: {'; '.join(missing)}.")


def _check_exported(weights: str) -> None:
    """Raises: ValueError for an exported file."""
    suffix = Path(weights).suffix.lower()
    if suffix in (".onnx", ".pt2", ".xml"):
        raise ValueError(
            f"{weights} is an exported model: it has no gradients and forms no attention maps. Give the weights that"
            " it was exported from."
        )


def _is_bad_image(error: ValueError) -> bool:
    from tetravit.data.decode import BadImage

    return isinstance(error, BadImage)


def _size(text: str | None) -> int | Literal["own"] | None:
    if text is None or text == "own":
        return cast(Any, text)
    if not text.isdigit() or int(text) < 32:
        raise ValueError(f"--size takes a side from 32 pixels up, or own; got {text!r}.")
    return int(text)


def _point(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        x, y = numbers(text)
    except ValueError:
        raise ValueError(f"--query takes X,Y, a pixel of the picture; got {text!r}.") from None
    return x, y


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """Parsed values of the given method options.

    Raises:
        ValueError: if a value cannot be parsed.
    """
    values = {}
    for name, value in given.items():
        if value is None or value is False:
            continue
        option = _declared()[name][0]
        try:
            values[name] = value if value is True else option.read(value)
        except ValueError as error:
            raise ValueError(f"{option.flag} {error}") from None
    return values


def _declared() -> dict[str, tuple[Option, str]]:
    """Every method option, with its help and the methods that accept it."""
    users: dict[str, list[str]] = {}
    options: dict[str, Option] = {}
    for name, row in EXPLAIN.items():
        for option in row.options:
            first = options.setdefault(option.name, option)
            if (first.metavar, first.read) != (option.metavar, option.read):
                raise ValueError(f"Two methods declare {option.flag} differently.")
            users.setdefault(option.name, []).append(name)
    return {name: (option, f"{option.help} ({', '.join(users[name])})") for name, option in options.items()}


VERBS = {"explain": with_options(explain, _declared())}
