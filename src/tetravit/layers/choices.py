"""Checks of constructor options whose values are given by name."""

from collections.abc import Sequence


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raises: ValueError for a value that is not `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} takes one of {', '.join(known)}; got {value!r}.")


def check_flags(**flags: object) -> None:
    """Raises: ValueError for an option that is neither true nor false."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is true or false; got {value!r}.")
