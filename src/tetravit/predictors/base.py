"""What a kind of prediction declares: its function, its options, the files it writes.

A declaration imports no torch, so that `tetravit predict --help` is quick: functions are named "module:function", and
imported when they are called.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of `tetravit predict`, and the keyword argument of a function.

    name: "save_maps" is --save-maps. help: one sentence. metavar: what its value is called; a flag has none.
    read: the text of the command line -> the value; ValueError if it does not parse.
    """

    name: str
    help: str
    metavar: str = ""
    read: Callable[[str], Any] = str

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


class Writer:
    """Writes predictions into files as they come.

    settings: what it needs of the predictor, by name.
    """

    settings: Mapping[str, Any] = {}

    def add(self, prediction: Any) -> None:
        """Take a prediction; those that are errors are left out."""
        raise NotImplementedError

    def close(self) -> str:
        """Finish the files; say in one line what was written."""
        raise NotImplementedError


@dataclass(frozen=True)
class Output:
    """Files that a kind of prediction can be written to.

    option: switches it on; its value is where to. open: a function, or "module:function", of (model, sources) and of
    the options by name, which gives a `Writer`. others: options that only this output reads.
    """

    option: Option
    open: "str | Callable[..., Writer]"
    others: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """How models of one kind predict.

    noun: what such a model is called. run: a function, or "module:function", of (model, sources) and of the options
    by name, which gives a `Prediction` for each source, in order. options, outputs: what it takes beside
    `batch_size` and `device`.
    """

    noun: str
    run: "str | Callable[..., Iterator[Any]]"
    options: tuple[Option, ...] = ()
    outputs: tuple[Output, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """Names of all options, those of outputs included."""
        outputs = [o for output in self.outputs for o in (output.option, *output.others)]
        return [option.name for option in (*self.options, *outputs)]


def function(place: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that "module:function" names, imported now; a function as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return imported


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"takes numbers with commas between them; got {text!r}.") from None


def whole(text: str) -> int:
    """A whole number.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"takes a whole number; got {text!r}.") from None


def real(text: str) -> float:
    """A number.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"takes a number; got {text!r}.") from None


WINDOW = Option("window", "Slide a window of this side over the image.", "PX", whole)
STRIDE = Option("stride", "Pixels from one window to the next.", "PX", whole)
