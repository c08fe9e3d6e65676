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
PLACE = "one or more paths, relative to the root; unset: the usual place."


class DataConfig(BaseModel):
    """Section [data] of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="`tetravit list datasets`.")
    root: str | None = Field(
        None, description="Folder of the data set, or a URL of a storage; stored as an absolute path."
    )
    train: Paths | None = Field(None, description=f"Location of the training images: {PLACE}")
    val: Paths | None = Field(None, description=f"Location of the validation images: {PLACE}")
    test: Paths | None = Field(None, description=f"Location of the test images: {PLACE}")
    split: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training images used for validation, if the set has no validation split.",
    )
    split_by: str = Field(
        "",
        description="Group key when a set is divided; a group stays in one split: nothing, folder, or a regular"
        " expression whose first group in the image name is the key.",
    )
    split_seed: int = Field(0, description="Seed of data.split.")
    image_size: Side | tuple[Side, Side] = Field(
        224, description="Side of the model's input in pixels, or [height, width]."
    )
    channels: int | None = Field(
        None,
        ge=1,
        description="Image channels: 3 RGB, 1 gray, else the bands of a file; unset: those of the model.",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="Mean per channel of values in 0..1, or one for all channels; unset: ImageNet's.",
    )
    std: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="Standard deviation per channel, or one for all channels; unset: ImageNet's.",
    )
    batch_size: int = Field(
        ge=1, description="Images per step, over all processes and accumulated micro-batches."
    )
    val_batch_size: int | None = Field(
        None, ge=1, description="Images per batch in evaluation, per process; unset: batch_size."
    )
    repeats: int = Field(
        1, ge=1, description="Repeated augmentation: copies of each sampled image in a batch."
    )
    group: int = Field(
        1,
        ge=1,
        description="Dense tasks: landscape and portrait images are batched separately, in groups of this size.",
    )
    shuffle: str = Field(
        "full",
        description="Order of the training images: full shuffles all; shards(N) shuffles the images of N shards at a"
        " time; table: full, in the order used by runs before this key existed.",
    )
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Class-balanced sampling: 0 natural frequencies, 1 all classes equally often, 0.5 by the square"
        " root of the image counts.",
    )
    bucket: int = Field(
        1, ge=1, description="Dense tasks: the sides of a padded batch are multiples of this many pixels."
    )
    augment: str = Field("crop | flip", description="Augmentations of the training images, joined by |.")
    mix: str = Field("", description="Mixing of the images of a batch: mixup(0.8), cutmix(1.0), joined by |.")
    workers: int | Literal["auto"] = Field(
        "auto", description="Data loader workers per process; 0: load in the training process."
    )
    crop: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Evaluation, mode center: crop as a share of the resized image.",
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="Evaluation: interpolation of the resize."
    )
    mode: Literal["center", "squash", "fit"] = Field(
        "center",
        description="Evaluation: center resizes with the aspect ratio and crops; squash resizes both sides; fit keeps"
        " the aspect ratio and the whole image.",
    )
    short: Side | None = Field(
        None,
        description="Evaluation: replaces image_size; in mode fit, the short side in pixels; unset: image_size.",
    )
    longest: int | None = Field(
        None, ge=1, description="Evaluation, mode fit: maximum of the long side in pixels; unset: no limit."
    )
    on_bad: OnBad = Field(
        "error", description="Unreadable images: error ends the run, skip uses the next image instead."
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
        """Raises: ValueError for inconsistent sizes, channels and colour settings."""
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
        """Mean and standard deviation per channel: from `mean` and `std`, from `normalize` in `augment`, or the
        defaults.

        Raises:
            ValueError: if these differ, or do not have one value per channel.
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
        """`mean` and `std` with one value per channel; a single value applies to all channels."""
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
        """The training transform for `augment`, or for another text.

        Raises:
            ValueError: if the text sets another mean or standard deviation than the section.
        """
        augment = self._augmentation(self.augment if text is None else text)
        if augment.normalize.values != self.normalization:
            raise ValueError(f"All views of an image are normalized alike; got {augment.text!r}.")
        return augment

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def parts(self) -> Parts:
        """Locations of the splits of the set."""
        given = {part: _listed(getattr(self, part)) for part in PARTS}
        return Parts(root=self.root, split=self.split, by=self.split_by, seed=self.split_seed, **given)

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing for evaluation and for users of the trained weights."""
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
        """The largest height and width (or width and height) of a part of a batch with `images` images.

        If images keep their aspect ratio, portrait and landscape images in one batch are padded to a square.
        """
        given = [step.limits for step in self._augmentation(self.augment).steps if step.limits]
        if not given:
            return self.sides
        short, longest = (-(-side // self.bucket) * self.bucket for side in given[-1])
        return (short if images <= self.group else longest), longest


def absolute(path: str) -> str:
    """A local path with `~` expanded, made absolute; a URL unchanged."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path


def _listed(paths: Paths | None) -> tuple[str, ...]:
    return () if paths is None else (paths,) if isinstance(paths, str) else tuple(paths)


def _as_text(value: Any) -> Any:
    """Convert to text: TOML parses a folder called 2024 as a number, and Python may pass a Path."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number or isinstance(value, os.PathLike) else value
