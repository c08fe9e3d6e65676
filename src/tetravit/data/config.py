"""Section [data] of a recipe."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tetravit.data.augment import Augment, parse
from tetravit.data.options import Options
from tetravit.data.order import parse_shuffle
from tetravit.data.parts import PARTS, Parts
from tetravit.data.prepare import OnBad
from tetravit.data.shards.index import NAMES, find_meta
from tetravit.data.storage import is_local
from tetravit.data.transforms.mixup import parse_mix
from tetravit.structures import Preprocess, usual_colours

Paths = str | tuple[str, ...]
Side = Annotated[int, Field(ge=1)]
PLACE = "a path or several, relative to the root; unset: the usual place."


class DataConfig(BaseModel):
    """Section [data] of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="`tetravit list datasets`.")
    root: str | None = Field(
        None, description="Folder of the data set, or a URL of a storage; stored as an absolute path."
    )
    train: Paths | None = Field(None, description=f"Where the training images lie: {PLACE}")
    val: Paths | None = Field(None, description=f"Where the validation images lie: {PLACE}")
    test: Paths | None = Field(None, description=f"Where the test images lie: {PLACE}")
    split: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training images that validates, where there is no part that does.",
    )
    split_by: str = Field(
        "",
        description="What stays in one part when a set is divided: nothing, folder, or a regular expression whose"
        " first group in the name of an image is the key.",
    )
    split_seed: int = Field(0, description="Seed of the division.")
    image_size: Side | tuple[Side, Side] = Field(
        224, description="Side of the images that the model gets, in pixels, or [height, width]."
    )
    channels: int | None = Field(
        None,
        ge=1,
        description="Of the images: 3 RGB, 1 gray, else the bands of a file; unset: as the model takes.",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="Mean per channel, of values in 0..1, or one for all; unset: ImageNet's.",
    )
    std: tuple[float, ...] | None = Field(
        None, min_length=1, description="Standard deviation per channel, or one for all; unset: ImageNet's."
    )
    batch_size: int = Field(ge=1, description="Images of a step, over all processes and accumulated parts.")
    val_batch_size: int | None = Field(
        None, ge=1, description="Images of a batch to evaluate, per process; unset: as batch_size."
    )
    repeats: int = Field(1, ge=1, description="Augmented copies of each drawn image in a batch.")
    group: int = Field(
        1,
        ge=1,
        description="Dense tasks: landscape and portrait images are batched apart, in groups of this size.",
    )
    shuffle: str = Field(
        "full",
        description="Order of the training images: full mixes all; shards(N) mixes the images of N shards at a time;"
        " table: as full, in the order of runs before this key.",
    )
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How evenly classes are drawn: 0 as they are, 1 each as often, 0.5 by the square root of their"
        " numbers of images.",
    )
    bucket: int = Field(
        1, ge=1, description="Dense tasks: the sides of a padded batch are multiples of this many pixels."
    )
    augment: str = Field("crop | flip", description="Augmentations of the training images, joined by |.")
    mix: str = Field("", description="How images of a batch are mixed: mixup(0.8), cutmix(1.0), joined by |.")
    workers: int | Literal["auto"] = Field(
        "auto", description="Processes that load images, per process; 0: none."
    )
    crop: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Evaluation, mode center: share of the resized image that the crop keeps.",
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="Evaluation: how images are resized."
    )
    mode: Literal["center", "squash", "fit"] = Field(
        "center",
        description="Evaluation: center keeps the ratio and crops; squash resizes both sides; fit keeps the ratio and"
        " all of the image.",
    )
    short: Side | None = Field(
        None,
        description="Evaluation: image_size of its own; in mode fit, pixels of the short side; unset: image_size.",
    )
    longest: int | None = Field(
        None, ge=1, description="Evaluation, mode fit: pixels of the long side at most; unset: no limit."
    )
    on_bad: OnBad = Field(
        "error", description="Unreadable images: error ends the run, skip takes the next image instead."
    )
    bad_limit: float = Field(
        0.001, ge=0, le=1, description="Share of unreadable images above which skip ends the run."
    )
    options: Options = Field(default_factory=dict, description="Arguments of the data set's constructor.")

    @field_validator("root", "train", "val", "test", mode="before")
    @classmethod
    def _paths_are_text(cls, value: Any) -> Any:
        return tuple(map(_as_text, value)) if isinstance(value, list | tuple) else _as_text(value)

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

    @field_validator("shuffle")
    @classmethod
    def _shuffle(cls, value: str) -> str:
        parse_shuffle(value)
        return value

    @field_validator("augment")
    @classmethod
    def _augment(cls, value: str) -> str:
        parse(value, size=1)
        return value

    @model_validator(mode="after")
    def _shards_have_a_kind(self) -> Self:
        """Where the root holds shards, the data set is the row of their kind."""
        meta = None if self.train or self.val or self.test else find_meta(self.root)
        if meta is not None:
            self.__dict__["name"] = NAMES[meta.kind]
        return self

    @model_validator(mode="after")
    def _images(self) -> Self:
        """Raises: ValueError for sizes, channels and colours that do not go together."""
        if self.mode == "fit" and not isinstance(self.image_size, int) and self.short is None:
            raise ValueError(
                "data.mode=fit keeps the ratio of an image: give data.short, one number; got"
                f" data.image_size={list(self.image_size)}."
            )
        self.normalization  # noqa: B018, for what it raises
        return self

    @field_validator("mix")
    @classmethod
    def _mix(cls, value: str) -> str:
        parse_mix(value, num_classes=2)
        return value

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per channel: of `mean` and `std`, of `normalize` in `augment`, or the usual ones.

        Raises:
            ValueError: if they differ, or have not one value per channel.
        """
        augment = self._augmentation(self.augment)
        channels = self.channels or 3
        coloured = [step for step in augment.steps if step.colours]
        if coloured and channels not in (1, 3):
            raise ValueError(
                f"{type(coloured[0]).__name__} in data.augment works on images of 1 or 3 channels; data.channels is"
                f" {channels}."
            )
        written = augment.normalize.values
        for name, value, usual in zip(("mean", "std"), written, self._colours, strict=True):
            if len(value) != channels:
                raise ValueError(
                    f"normalize in data.augment has {len(value)} values of {name} for images of {channels}"
                    f" channel{'s' if channels > 1 else ''}."
                )
            if getattr(self, name) is not None and value != usual:
                raise ValueError(
                    f"normalize in data.augment says {name} {list(value)}, data.{name} {list(usual)}; leave one of"
                    " them out."
                )
        return written

    @property
    def _colours(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`mean` and `std`, one value per channel; a single value is that of all channels."""
        channels = self.channels or 3
        result = []
        for name, given, usual in zip(
            ("mean", "std"), (self.mean, self.std), usual_colours(channels), strict=True
        ):
            value = usual if given is None else given * channels if len(given) == 1 else given
            if len(value) != channels:
                raise ValueError(f"data.{name} has one value per channel: {channels}; got {len(value)}.")
            if name == "std" and min(value) <= 0:
                raise ValueError(f"data.std is above 0; got {list(value)}.")
            result.append(tuple(map(float, value)))
        return result[0], result[1]

    def _augmentation(self, text: str) -> Augment:
        mean, std = self._colours
        return parse(text, size=self.image_size, mean=mean, std=std)

    def augmentation(self, text: str | None = None) -> Augment:
        """The transform of training images that `augment`, or another text, describes for these images.

        Raises:
            ValueError: if the text says another mean or deviation than the section does.
        """
        augment = self._augmentation(self.augment if text is None else text)
        if augment.normalize.values != self.normalization:
            raise ValueError(f"All views of an image are normalized alike; got {augment.text!r}.")
        return augment

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images that the model gets."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def parts(self) -> Parts:
        """Where the parts of the set lie."""
        given = {part: _listed(getattr(self, part)) for part in PARTS}
        return Parts(root=self.root, split=self.split, by=self.split_by, seed=self.split_seed, **given)

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared for evaluation, and by users of the trained weights."""
        mean, std = self.normalization
        return Preprocess(
            mean=mean,
            std=std,
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
        given = [step.limits for step in self._augmentation(self.augment).steps if step.limits]
        if not given:
            return self.sides
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
