"""Section [data] of a recipe."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tetravit.data.augment import parse
from tetravit.data.options import Options
from tetravit.data.parts import PARTS, Parts
from tetravit.data.prepare import OnBad
from tetravit.data.storage import is_local
from tetravit.data.transforms.mixup import parse_mix
from tetravit.structures import Preprocess

Paths = str | tuple[str, ...]
PLACE = "a path or a list of them, relative to the root; none: the usual place"


class DataConfig(BaseModel):
    """Section [data] of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    root: str | None = Field(
        None, description="folder of the data set, or a URL of a storage; stored as an absolute path"
    )
    train: Paths | None = Field(None, description=f"where the images to train on lie: {PLACE}")
    val: Paths | None = Field(None, description=f"where the validation images lie: {PLACE}")
    test: Paths | None = Field(None, description=f"where the test images lie: {PLACE}")
    split: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the images to train on that validates instead of a part of its own",
    )
    split_by: str = Field(
        "",
        description="what stays in one part when a set is divided: nothing, 'folder', or a regular expression whose"
        " first group in the image's name is the key",
    )
    split_seed: int = Field(0, description="another seed divides a set otherwise")
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

    @field_validator("root", "train", "val", "test", mode="before")
    @classmethod
    def _paths_are_text(cls, value: Any) -> Any:
        return [_as_text(v) for v in value] if isinstance(value, list | tuple) else _as_text(value)

    @field_validator("root")
    @classmethod
    def _root_is_absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute(value)

    @field_validator("train", "val", "test")
    @classmethod
    def _parts_follow_the_root(cls, value: Paths | None, info: ValidationInfo) -> Paths | None:
        """Without a root, paths are relative to the current folder."""
        if value is None or info.data.get("root") is not None:
            return value
        return absolute(value) if isinstance(value, str) else tuple(map(absolute, value))

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
    def parts(self) -> Parts:
        """Where the parts of the set lie."""
        given = {part: _listed(getattr(self, part)) for part in PARTS}
        return Parts(root=self.root, split=self.split, by=self.split_by, seed=self.split_seed, **given)

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


def _listed(paths: Paths | None) -> tuple[str, ...]:
    return () if paths is None else (paths,) if isinstance(paths, str) else tuple(paths)


def _as_text(value: Any) -> Any:
    """A folder called 2024 is read as a number by TOML; a path of Python is text too."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number or isinstance(value, os.PathLike) else value
