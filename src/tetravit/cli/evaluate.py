"""`tetravit evaluate`."""


def evaluate() -> None:
    """Placeholder."""
    raise ValueError("not here yet")
