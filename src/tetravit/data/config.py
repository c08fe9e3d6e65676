"""Section [data] of a recipe."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tetravit.data.augment import parse
from tetravit.data.options import Options
from tetravit.data.prepare import OnBad
from tetravit.data.storage import is_local
from tetravit.data.transforms.mixup import parse_mix
from tetravit.structures import Preprocess


class DataConfig(BaseModel):
    """Section [data] of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    root: str | None = None  # a folder, or a URL of a storage; stored as an absolute path
    image_size: int = Field(224, ge=1)  # pixels
    batch_size: int = Field(ge=1)  # over all ranks and accumulated steps
    val_batch_size: int | None = Field(None, ge=1)  # per rank; None: as batch_size
    repeats: int = Field(1, ge=1)  # views of each drawn image
    group: int = Field(
        1, ge=1
    )  # dense tasks: so many images that are all wider than high, or all not, go together
    bucket: int = Field(1, ge=1)  # dense tasks: sides of a padded batch are multiples of so many pixels
    augment: str = "crop | flip"
    mix: str = ""
    workers: int | Literal["auto"] = "auto"  # per rank
    crop: float = Field(0.875, gt=0, le=1)  # evaluation: share of the resized image that is seen
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # evaluation
    mode: Literal["center", "squash", "fit"] = "center"  # evaluation: see `structures.Preprocess`
    short: int | None = Field(None, ge=1)  # evaluation: side in pixels; None: image_size
    longest: int | None = Field(None, ge=1)  # evaluation, mode fit: pixels of the long side at most
    on_bad: OnBad = "error"
    bad_limit: float = Field(0.001, ge=0, le=1)  # share of bad images above which "skip" gives up
    options: Options = Field(default_factory=dict)  # arguments of the data set

    @field_validator("root", mode="before")
    @classmethod
    def _root_is_text(cls, value: Any) -> Any:
        """A folder called 2024 is read as a number by TOML; a path of Python is text too."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if number or isinstance(value, os.PathLike) else value

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute(value)

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"workers is auto, or 0 or more; got {value}.")
        return value

    @field_validator("augment")
    @classmethod
    def _augment(cls, value: str) -> str:
        parse(value, size=1)
        return value

    @field_validator("mix")
    @classmethod
    def _mix(cls, value: str) -> str:
        parse_mix(value, num_classes=2)
        return value

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared for evaluation, and by users of the trained weights."""
        return Preprocess(
            size=self.short or self.image_size,
            crop=self.crop,
            interpolation=self.interpolation,
            mode=self.mode,
            longest=self.longest,
        )

    def canvas(self, images: int) -> tuple[int, int]:
        """The largest height and width, or width and height, of a part of a batch that holds `images` images.

        Where images keep their ratio, high ones beside wide ones are filled up to a square.
        """
        given = [step.limits for step in parse(self.augment, size=self.image_size).steps if step.limits]
        if not given:
            return self.image_size, self.image_size
        short, longest = (-(-side // self.bucket) * self.bucket for side in given[-1])
        return (short if images <= self.group else longest), longest


def absolute(path: str) -> str:
    """A local path with `~` and the current folder filled in; a URL as it is."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path
