"""Declaration of a kind of prediction: its function, options and output files.

A declaration imports no torch, so that `tetravit predict --help` is fast: functions are given as "module:function",
and imported when called.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of `tetravit predict`, and the corresponding keyword argument.

    name: "save_maps" is --save-maps. help: one sentence. metavar: placeholder of its value; a flag has none. read:
    parses the command-line text; ValueError if invalid.
    """

    name: str
    help: str
    metavar: str = ""
    read: Callable[[str], Any] = str

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


class Writer:
    """Writes predictions to files as they arrive.

    settings: additional options for the predictor, by name.
    """

    settings: Mapping[str, Any] = {}

    def add(self, prediction: Any) -> None:
        """Add a prediction; predictions with errors are skipped."""
        raise NotImplementedError

    def close(self) -> str:
        """Finish the files; returns a one-line summary."""
        raise NotImplementedError


@dataclass(frozen=True)
class Output:
    """An output format of a kind of prediction.

    option: enables it; its value is the path. open: a function, or "module:function", of (model, sources) and keyword
    options, which returns a `Writer`. others: further options of this output.
    """

    option: Option
    open: "str | Callable[..., Writer]"
    others: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """Prediction for one kind of model.

    noun: name of such a model. run: a function, or "module:function", of (model, sources) and keyword options, which
    yields a `Prediction` per source, in order. options, outputs: in addition to `batch_size` and `device`.
    """

    noun: str
    run: "str | Callable[..., Iterator[Any]]"
    options: tuple[Option, ...] = ()
    outputs: tuple[Output, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """Names of all options, including those of outputs."""
        outputs = [o for output in self.outputs for o in (output.option, *output.others)]
        return [option.name for option in (*self.options, *outputs)]


def function(place: str | Callable[..., Any]) -> Callable[..., Any]:
    """Import the function "module:function"; a function is returned unchanged."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return imported


def numbers(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers.

    Raises:
        ValueError: if the text is invalid.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"takes numbers with commas between them; got {text!r}.") from None


def whole(text: str) -> int:
    """Parse an integer.

    Raises:
        ValueError: if the text is invalid.
    """
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"takes a whole number; got {text!r}.") from None


def real(text: str) -> float:
    """Parse a number.

    Raises:
        ValueError: if the text is invalid.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"takes a number; got {text!r}.") from None


WINDOW = Option("window", "Side of a sliding window in pixels.", "PX", whole)
STRIDE = Option("stride", "Stride of the sliding window in pixels.", "PX", whole)
