"""`"crop(224) | flip | randaugment(2, 9) | erase(0.25)"` -> one callable."""

from collections.abc import Sequence
from typing import Any

from tetravit.data.calls import parse_calls
from tetravit.data.transforms import TRANSFORMS, Transform
from tetravit.data.transforms.normalize import Normalize


class Augment:
    """Transforms one after the other: a uint8 image (C, Hi, Wi) -> a normalized float one."""

    def __init__(self, text: str, steps: list[Transform]) -> None:
        self.text = text
        self.steps = steps

    def __call__(self, *inputs: Any) -> Any:
        for step in self.steps:
            inputs = step(*inputs)
            if not isinstance(inputs, tuple):
                inputs = (inputs,)
        return inputs[0] if len(inputs) == 1 else inputs

    @property
    def normalize(self) -> Normalize:
        """The step that makes pixels floats."""
        return next(step for step in self.steps if isinstance(step, Normalize))

    def __repr__(self) -> str:
        return f"Augment({self.text!r})"


def parse(
    text: str,
    *,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Augment:
    """Read an augmentation.

    `normalize` need not be written: it is put before the first step that works on normalized values
    (`erase`), or at the end.

    Args:
        text: names of `TRANSFORMS` with literal arguments, joined by |.
        size: side in pixels, or (height, width), for the steps that take one and are written without (`crop`);
            None: it must be written.
        mean, std: per channel, for `normalize` where it is written without; None: ImageNet's.

    Raises:
        ValueError: for an unknown name, arguments a step does not take, or a text that cannot be parsed.
    """
    colours = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    defaults = {} if size is None else {"size": size}
    calls = parse_calls(text, "An augmentation")
    names = [call.name for call in calls]
    steps = [
        call.build(TRANSFORMS, "augmentation", **(colours if call.name == "normalize" else defaults))
        for call in calls
    ]
    first = next((i for i, step in enumerate(steps) if step.normalized), len(steps))
    late = [name for name, step in zip(names[first:], steps[first:], strict=True) if not step.normalized]
    if late:
        raise ValueError(f"{late[0]} works on pixels; put it before {names[first]} in {text!r}.")
    if "normalize" not in names:
        steps.insert(first, TRANSFORMS["normalize"](**colours))
    elif names.index("normalize") > first:
        raise ValueError(f"{names[first]} works on normalized values; put it after normalize in {text!r}.")
    return Augment(text, steps)
