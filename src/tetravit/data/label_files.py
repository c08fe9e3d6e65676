"""Match label maps to images: by equal names, or by one pattern for all."""

import os
from collections.abc import Sequence
from pathlib import Path

from tetravit.data.files import ENDINGS, UNREADABLE, ending, is_junk_folder
from tetravit.data.lookup import Lookup, files_below
from tetravit.data.problems import Problems

SUFFIXES = tuple(sorted(ENDINGS))
LABELS = (
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".pgm",
    ".ppm",
    ".webp",
)  # extensions of label maps, most common first
LOSSY = (".jpg", ".jpeg")

Pair = tuple[Path, Path]  # image, label map


def pairs_of(
    images: Path,
    labels: Path,
    *,
    label_names: str | None = None,
    problems: Problems | None = None,
    needed: str = "",
) -> list[Pair]:
    """Every image below a folder, in order, with its label map below another folder.

    Args:
        label_names: name pattern of label maps, with {name} for the image name without extension ("{name}_mask.png");
            None: the name of the image, or that name with one prefix or suffix shared by all files.
        problems: counts images that cannot be read.
        needed: substring required in the folder path of an image; "": none.

    Raises:
        ValueError: if a folder is missing or empty, or an image has no label map.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise ValueError(f"There is no folder {str(folder)!r}.")
    names = sorted(files_below(images))
    if images == labels:
        names = [name for name in names if ending(name) in LOSSY or label_names is None]
    images_of_split = [name for name in names if ending(name) in ENDINGS]
    for name in names:
        if ending(name) in UNREADABLE and problems is not None:
            problems.add(f"images left out: {ending(name)} cannot be read; convert them", name)
    if not images_of_split:
        raise ValueError(f"There are no images in {str(images)!r}.")
    maps = [name for name in files_below(labels) if ending(name) in LABELS]
    if not maps:
        lossy = any(ending(name) in LOSSY for name in files_below(labels))
        hint = "; .jpg blurs the numbers of classes, store label maps as .png" if lossy else ""
        raise ValueError(f"There are no label maps (*.png) in {str(labels)!r}{hint}.")
    if label_names is not None:
        if "{name}" not in label_names:
            raise ValueError(
                f'data.options.label_names holds {{name}}, such as "{{name}}_mask.png"; got {label_names!r}.'
            )
        return [(images / name, labels / _named(name, label_names)) for name in images_of_split]
    lookup = Lookup(labels, LABELS)
    pairs = [(name, _label_of(name, lookup)) for name in images_of_split]
    if not any(label for _, label in pairs):
        pattern = _pattern(images_of_split, maps)
        if pattern is not None:
            return [(images / name, labels / _named(name, pattern)) for name in images_of_split]
    return [(images / name, labels / (label or _named(name, "{name}.png"))) for name, label in pairs]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raises: ValueError if an image has no label map, or shares it with another."""
    lacking = [label for _, label in pairs if not label.is_file()]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} images lack their label map; the first is {str(lacking[0])!r}."
            ' data.options.label_names="{name}_mask.png" says what label maps are called.'
        )
    owners: dict[Path, Path] = {}
    for image, label in pairs:
        if (other := owners.setdefault(label, image)) is not image:
            raise ValueError(
                f"{str(other)!r} and {str(image)!r} share the label map {label.name!r}; rename one of them, or"
                " remove it."
            )


def folders_below(folder: Path) -> list[str]:
    """Names of the subfolders of a folder, sorted; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_junk_folder(entry.name))


def _label_of(name: str, lookup: Lookup) -> str | None:
    """The label map with the image's name in the same folder, with any extension."""
    stem = os.path.splitext(name)[0]
    for suffix in LABELS:
        for label in (f"{stem}{suffix}", f"{stem}{suffix.upper()}"):
            if label in lookup.exact:
                return label
    path = lookup.find(f"{stem}.png")
    return path if path is not None and path.count("/") == name.count("/") else None


def _named(name: str, pattern: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{pattern.replace('{name}', os.path.splitext(last)[0])}"


def _pattern(images: Sequence[str], maps: Sequence[str]) -> str | None:
    """The pattern that gives every image a label map; None: none fits, or several do."""
    known = set(maps)
    folder, _, last = images[0].rpartition("/")
    stem = os.path.splitext(last)[0]
    fitting: dict[str, None] = {}
    for label in maps:
        place, _, name = label.rpartition("/")
        if place != folder:
            continue
        for at in (i for i in range(len(name)) if name.startswith(stem, i)):
            pattern = f"{name[:at]}{{name}}{name[at + len(stem) :]}"
            if all(_named(image, pattern) in known for image in images):
                fitting[pattern] = None
    return next(iter(fitting)) if len(fitting) == 1 else None
