"""The images that a file is compared with its model on: a validation set, a folder, photographs, drawn scenes."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tetravit.data.files import images_below
from tetravit.data.preprocess import eval_transform, pixels
from tetravit.exports.compare import Picture, colours_of, drawing
from tetravit.exports.parts.certificate import Source
from tetravit.recipe import loads
from tetravit.runs.evaluate import open_data, recipe_of
from tetravit.structures import Preprocess

COUNT = 32  # images of a validation set or folder
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # of scikit-learn
SCENES = 6  # drawn scenes beside them


@dataclass(frozen=True)
class Pictures:
    """Images to compare on.

    source, text: what they are, as a word and in words. notes: why no others, in lines. folder: where they lie, as it
    was given; "" where they are of none.
    """

    source: Source
    text: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()
    folder: str = ""


def gather(model: Any, images: str | Path | None = None, weights: str | Path = "") -> Pictures:
    """The images of a folder; else of the validation set of the run that made `weights`; else usual ones.

    Args:
        model: the model, which the images are prepared for.
        images: a folder; None: none is given.
        weights: a run folder or weights file whose header names the data; "": unknown.

    Raises:
        ValueError: for a folder without images, or images that cannot be read.
    """
    if images is not None:
        return _of_folder(model, Path(images))
    notes = []
    recipe = recipe_of(weights) if weights else ""
    if recipe:
        try:
            return _of_validation(model, recipe)
        except (ValueError, OSError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            notes.append(f"The validation set of the run is not available: {why}")
    return usual(model, notes)


def usual(model: Any, notes: Sequence[str] = ()) -> Pictures:
    """The two photographs of scikit-learn, where it is installed, and drawn scenes."""
    mean, std = colours_of(model)
    drawn = [drawing(i, mean, std) for i in range(SCENES)]
    if len(mean) != 3:
        text = f"noise, as the model takes {len(mean)} channels"
        return Pictures("drawings", text, tuple(drawn), tuple(notes))
    photographs = [photograph for name in PHOTOGRAPHS if (photograph := _photograph(name)) is not None]
    if len(photographs) < len(PHOTOGRAPHS):
        why = "The photographs of scikit-learn are not installed: pip install scikit-learn"
        return Pictures("drawings", f"{SCENES} drawn scenes", tuple(drawn), (*notes, why))
    real = [prepare(model, pixels(path)) for path in photographs]
    text = f"the two photographs of scikit-learn and {SCENES} drawn scenes"
    return Pictures("photographs", text, (*real, *drawn), tuple(notes))


def _photograph(name: str) -> Path | None:
    """A photograph of scikit-learn, which is not imported; None: it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    places = [
        Path(place) / "datasets" / "images" / name
        for place in (spec and spec.submodule_search_locations) or ()
    ]
    return next((path for path in places if path.is_file()), None)


def _of_folder(model: Any, folder: Path) -> Pictures:
    channels = len(colours_of(model)[0])
    if not folder.is_dir():
        raise ValueError(f"--images takes a folder of images; there is no folder {str(folder)!r}.")
    names = images_below(str(folder), channels=channels)
    if not names:
        raise ValueError(f"There are no images in the folder {str(folder)!r}.")
    names = [names[i] for i in _spread(len(names))]
    made = tuple(prepare(model, pixels(folder / name, channels)) for name in names)
    return Pictures("folder", f"{len(made)} images of the folder {folder}", made, folder=str(folder))


def _of_validation(model: Any, text: str) -> Pictures:
    recipe = loads(text, name="The recipe in the weights")
    data = recipe.data.model_copy(update={"workers": 0})
    names = getattr(model, "class_names", ())
    dataset = open_data(data, getattr(model, "input", data.preprocess), class_names=names).dataset
    if not len(dataset):
        raise ValueError("it is empty")
    made = tuple(prepare(model, dataset[i].image) for i in _spread(len(dataset)))
    return Pictures("validation", f"{len(made)} images of the validation set of the run ({data.name})", made)


def _spread(count: int) -> list[int]:
    """At most `COUNT` positions among `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(COUNT, count)).round().astype(int).tolist()


def prepare(model: Any, image: Tensor) -> Picture:
    """A picture uint8 (C, Hi, Wi), resized to cover the sides, cut to them and normalized."""
    mean, std = colours_of(model)
    usual: Preprocess = getattr(model, "input", Preprocess(mean=mean, std=std))

    def picture(height: int, width: int) -> Tensor:
        return eval_transform(replace(usual, size=(height, width), mode="center", crop=1.0))(image)

    return picture
