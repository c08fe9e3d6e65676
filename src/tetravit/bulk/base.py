"""What an engine is: a way to run the units of a plan. Importing this loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How an engine runs.

    processes: at once; 0: as many as the engine thinks right. device: of the model. options: of the engine alone.
    dry_run: show what would be run, run nothing. command: this command line, for engines that write scripts.
    """

    processes: int = 0
    device: str = "auto"
    options: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """A way to run units.

    run: (plan, units that are not finished, settings, progress) -> what to say in the end. It may return before the
    units are done, where others run them. options: names of its own options.
    """

    help: str
    run: Callable[[Any, Sequence[Any], Settings, Callable[[int, int], object]], str]
    options: tuple[str, ...] = ()
