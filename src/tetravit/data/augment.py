"""Parse an augmentation such as `"crop(224) | flip | randaugment(2, 9) | erase(0.25)"` into one callable."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tetravit.data.calls import parse_calls
from tetravit.data.transforms import TRANSFORMS, Transform
from tetravit.data.transforms.erase import Erase
from tetravit.data.transforms.normalize import Normalize
from tetravit.structures import Finish

Patch = tuple[int, int, Tensor]


class Augment:
    """A chain of transforms: uint8 image (C, Hi, Wi) -> normalized float image."""

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
        """The step that normalizes."""
        return next(step for step in self.steps if isinstance(step, Normalize))

    @property
    def on_pixels(self) -> "Augment":
        """The steps before `normalize`: a uint8 image, as input of `finished`."""
        steps = self.steps[: self.steps.index(self.normalize)]
        return Augment(self.text, steps)

    @property
    def erases(self) -> bool:
        """Whether any step follows `normalize`."""
        return self.steps[-1] is not self.normalize

    @property
    def can_finish_later(self) -> bool:
        """Whether `erase` is the only step after `normalize`, so that a batch can be finished on its device."""
        return all(isinstance(step, Erase) for step in self.steps[self.steps.index(self.normalize) + 1 :])

    def finished(self, drawn: Sequence[Sequence[Patch]]) -> Finish:
        """Normalize and erase a batch. drawn: the rectangles from `patches`, per image."""
        normalize = self.normalize
        patches = [(row, *patch) for row, some in enumerate(drawn) for patch in some]
        return Finish(normalize.mean, normalize.std, patches)

    def patches(self, image: Tensor) -> list[Patch]:
        """The rectangles that `erase` fills in an image, with the same random draws: top, left, values (C, h, w)."""
        drawn = []
        for step in self.steps[self.steps.index(self.normalize) + 1 :]:
            box = step.make_params([image])["box"]
            if box is not None:
                top, left, height, width = box
                drawn.append((top, left, torch.randn(*image.shape[:-2], height, width)))
        return drawn

    def __repr__(self) -> str:
        return f"Augment({self.text!r})"


def parse(
    text: str,
    *,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Augment:
    """Parse an augmentation.

    `normalize` may be omitted: it is inserted before the first step that works on normalized values (`erase`), or at
    the end.

    Args:
        text: names of `TRANSFORMS` with literal arguments, joined by |.
        size: side in pixels, or (height, width), for steps that need a size and are written without one (`crop`);
            None: it must be written.
        mean, std: per channel, for a `normalize` without arguments; None: ImageNet's.

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
