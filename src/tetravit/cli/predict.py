"""`tetravit predict`."""


def predict() -> None:
    """Placeholder."""
    raise ValueError("not here yet")
