"""Checks of constructor options with a fixed set of values."""

from collections.abc import Sequence


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raises: ValueError for a value not in `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} takes one of {', '.join(known)}; got {value!r}.")


def check_flags(**flags: object) -> None:
    """Raises: ValueError for an option that is not a bool."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is true or false; got {value!r}.")
