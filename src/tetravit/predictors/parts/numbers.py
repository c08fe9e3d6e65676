"""COCO's result format: ids of images and categories, and the file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tetravit.data import coco
from tetravit.data.datasets.coco import numbers as listed
from tetravit.models import Model
from tetravit.predictors.base import Writer
from tetravit.predictors.parts.predictions import Source
from tetravit.predictors.parts.video import is_video
from tetravit.registry import suggestion


@dataclass(frozen=True)
class Numbers:
    """images: id of each file. categories: id of each class. note: their origin, in one line."""

    images: dict[Path, int]
    categories: tuple[int, ...]
    note: str


def numbers(files: Sequence[Path], names: Sequence[str], annotations: Path | None = None) -> Numbers:
    """Ids of the images `files` and the classes `names`.

    Args:
        annotations: COCO JSON of these images, whose ids are used; a file is matched if its path ends with
            `file_name`. None: image ids are the file names, if all are unique numbers, else 1, 2, 3, ...; category
            ids are COCO's for COCO's classes, else 1, 2, 3, ...

    Raises:
        ValueError: in one line, if the annotations lack an image or a class, or two images have the same id.
    """
    if annotations is not None:
        images, categories = _looked_up(files, names, annotations)
        note = f"Ids of images and categories are those of {annotations}."
    else:
        stems = [int(file.stem) for file in files if file.stem.isdecimal()]
        decimal = len(stems) == len(files)
        named = decimal and len(set(stems)) == len(stems)
        images = {file: int(file.stem) if named else i for i, file in enumerate(files, start=1)}
        categories = coco.category_ids(names)
        own = tuple(names) == coco.class_names()
        note = (
            f"Ids of images are {'their file names' if named else 'counted from 1'}"
            f"{_collision(files, decimal, named)}, ids of categories "
            f"{'those of COCO' if own else 'counted from 1'}; --annotations FILE takes both from COCO's JSON."
        )
    taken: dict[int, Path] = {}
    for file, number in images.items():
        if number in taken:
            raise ValueError(f"Two images have the id {number}: {str(taken[number])!r} and {str(file)!r}.")
        taken[number] = file
    return Numbers(images, categories, note)


def _collision(files: Sequence[Path], decimal: bool, named: bool) -> str:
    """The reason why numeric file names are not unique ids: the first collision."""
    if named or not decimal:
        return ""
    first: dict[int, Path] = {}
    for file in files:
        other = first.setdefault(int(file.stem), file)
        if other is not file:
            return f", because {str(other)!r} and {str(file)!r} have one number"
    return ""


def _looked_up(
    files: Sequence[Path], names: Sequence[str], annotations: Path
) -> tuple[dict[Path, int], tuple[int, ...]]:
    images, categories = listed(annotations)
    for name in names:
        if name not in categories:
            raise ValueError(
                f"{annotations.name} has no category {name!r}, which the model finds.{suggestion(name, categories)}"
            )
    number_of: dict[Path, int] = {}
    for file in files:
        ends = ("/".join(file.parts[i:]) for i in range(len(file.parts)))
        end = next((end for end in ends if end in images), None)
        if end is None:
            raise ValueError(f"{annotations.name} lists no image {file.name!r}.")
        number_of[file] = images[end]
    return number_of, tuple(categories[name] for name in names)


class _Results(Writer):
    def __init__(self, file: Path, ids: Numbers) -> None:
        self.file, self.ids = file, ids
        self.settings = {"categories": ids.categories}
        self.rows: list[dict[str, Any]] = []

    def add(self, prediction: Any) -> None:
        number = self.ids.images[prediction.image]
        self.rows += [{"image_id": number, **row} for row in prediction.results()]

    def close(self) -> str:
        self.file.write_text(json.dumps(self.rows))
        return f"Wrote {len(self.rows)} objects into {self.file}. {self.ids.note}"


def results(
    model: Model, sources: Sequence[Source], results: Path, annotations: Path | None = None
) -> Writer:
    """A writer of COCO's result format to the file `results`, with the ids of `annotations`.

    Raises:
        ValueError: in one line, for video frames, or as in `numbers`.
    """
    files = [source for source in sources if isinstance(source, Path) and not is_video(source)]
    if len(files) < len(sources):
        raise ValueError("--results is for image files: frames of a video have no ids.")
    names = model.class_names or [str(i) for i in range(model.num_classes)]
    return _Results(results, numbers(files, names, annotations))
