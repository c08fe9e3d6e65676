"""Horizontal flip."""

from typing import Any

from tetravit.data.geometry import flip
from tetravit.data.transforms.base import Transform, chance, check_probability


class Flip(Transform):
    """Horizontal flip with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability("flip", p)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"flip": chance(self.p)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return flip(inpt) if params["flip"] else inpt


TRANSFORMS = {"flip": Flip}
