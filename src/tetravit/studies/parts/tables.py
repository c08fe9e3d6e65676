"""Published weights on published data sets: a row per score, beside the figures that the catalogue has of them."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tetravit.studies.base import Row, compared

ROUNDING = {
    "top1": 0.1,
    "top5": 0.1,
    "knn_20": 0.1,
    "linear": 0.2,
    "box_ap": 0.2,
    "mask_ap": 0.2,
    "miou": 0.2,
}
ACCURACIES = ("top1", "top5", "knn_20", "linear")  # shares of images, which have a standard error


def evaluated(
    weights: str | Path,
    overrides: Sequence[str],
    scores: Sequence[str],
    *,
    key: str,
    facts: Mapping[str, Any],
    images: int | None,
    device: str,
    done: Mapping[str, Row],
    on_run: Callable[[str], object],
    differs: str = "",
    prepare: Callable[[Any], Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of one evaluation, one per score, in percent.

    key: names everything that the figures depend on. facts: columns of the rows. differs: what of the protocol is
    not as published.
    """
    keys = {score: f"{key} {score}" for score in scores}
    if all(name in done for name in keys.values()):
        yield from (dict(done[name]) for name in keys.values())
        return
    from tetravit.runs.evaluate import evaluate

    on_run(" ".join(map(str, facts.values())))
    result = evaluate(weights, overrides, images=images, device=device, prepare=prepare)
    for score in scores:
        if score not in result.scores:
            continue
        published = _published(weights, result.data, score)
        value, by, whole = published or (None, "", result.images)
        got, part = 100 * result.scores[score], result.images < whole
        fair = any(figure.score == score for figure in result.references)
        reason = differs or ("" if fair or value is None else "images prepared otherwise")
        spread = ROUNDING.get(score, 0.2)
        if part and score not in ACCURACIES:
            reason = reason or f"{result.images:,} of {whole:,} images"
        elif part:
            share = result.scores[score]
            spread = round(spread + 200 * (max(share * (1 - share), 1e-9) / result.images) ** 0.5, 2)
        yield {
            "key": keys[score], **facts, "score": score, "images": result.images, "by": by,
            **compared(got, value, spread, differs=reason),
        }  # fmt: skip


def _published(weights: str | Path, data: str, score: str) -> tuple[float, str, int] | None:
    """A published figure in percent, where it is printed, and its number of images; the authors' before others'."""
    from tetravit.protocols.references import references
    from tetravit.weights import CHECKPOINTS

    row = CHECKPOINTS.get(str(weights))
    for figure in references(row, data) if row else ():
        if figure.score == score:
            return round(100 * figure.value, 3), figure.by, figure.images
    return None


def published(
    task: str,
    weights: str,
    data_root: str,
    what: str,
    scores: Sequence[str],
    *,
    images: int | None,
    device: str,
    done: Mapping[str, Row],
    on_run: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    """The rows of published weights of a task, names separated by commas, on `what` in `data_root`.

    Raises:
        ValueError: for no data, or weights that are none of the task.
    """
    from tetravit.weights import CHECKPOINTS

    need(data_root, what)
    known = [row.name for row in CHECKPOINTS.values() if row.task == task]
    for name in names(weights, known):
        yield from evaluated(
            name, [f"data.root={data_root}"], scores, key=" ".join(map(str, (name, data_root, images))),
            facts={"weights": name}, images=images, device=device, done=done, on_run=on_run,
        )  # fmt: skip


def trained_on_drawings(
    recipe: str,
    head: str,
    patch: int,
    steps: int,
    about: str,
    scores: Sequence[str],
    *,
    key: str,
    images: int | None,
    device: str,
    done: Mapping[str, Row],
    on_run: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    """The rows of a small XCiT with `head`, patches of `patch` pixels, after `steps` steps of `recipe`."""
    from tetravit.runs import train
    from tetravit.studies.parts.training import shapes_recipe

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if f"{key} {scores[-1]}" not in done:
            on_run(f"training a {about}, {steps} steps")
            train(shapes_recipe(recipe, head, patch, steps=steps, device=device), run, reporters=[])
        yield from evaluated(
            run / "last.safetensors", [], scores, key=key, facts={"weights": about}, images=images,
            device=device, done=done, on_run=on_run,
        )  # fmt: skip


def names(text: str, known: Sequence[str]) -> list[str]:
    """The weights of `--weights`, published names of one task.

    Raises:
        ValueError: for a name that is none of them.
    """
    from tetravit.registry import suggestion

    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise ValueError(f"The study is about published weights; got {name!r}.{suggestion(name, known)}")
    return asked


def need(root: str, what: str) -> None:
    """Raises: ValueError for no data."""
    if not root:
        raise ValueError(f"The study needs {what}: --data-root DIR, or --small.")
