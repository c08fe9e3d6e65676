"""`tetravit benchmark`."""


def benchmark() -> None:
    """Placeholder."""
    raise ValueError("not here yet")
