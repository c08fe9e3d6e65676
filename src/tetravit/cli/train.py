"""`tetravit train`."""


def train() -> None:
    """Placeholder."""
    raise ValueError("not here yet")
