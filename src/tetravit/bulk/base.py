"""The interface of an engine, which runs the units of a plan. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Settings of an engine.

    processes: in parallel; 0: chosen by the engine. device: of the model. options: specific to the engine. dry_run:
    show the work without running it. command: this command line, for engines that write scripts.
    """

    processes: int = 0
    device: str = "auto"
    options: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """An engine.

    run: (plan, unfinished units, settings, progress) -> closing message. It may return before the units are done, if
    they run elsewhere. options: names of its own options.
    """

    help: str
    run: Callable[[Any, Sequence[Any], Settings, Callable[[int, int], object]], str]
    options: tuple[str, ...] = ()
