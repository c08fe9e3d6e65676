"""Locate COCO JSON files and their images: layouts of COCO, Roboflow, CVAT, Label Studio and others."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tetravit.data.lookup import Lookup, visible_files
from tetravit.data.parts import NAMES, Part, Place, dividing

# Annotation files of a split, relative to the root, most common first; {} is a name of the split.
FILES = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}2014.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "{}/labels.json",
    "{}/instances_{}.json",
    "{}.json",
    "instances_{}.json",
    "annotations/image_info_{}.json",
)
# The file of a set without splits.
WHOLE = (
    "annotations/instances_default.json",
    "_annotations.coco.json",
    "train/_annotations.coco.json",
    "result.json",
    "annotations.json",
    "labels.json",
    "annotations/annotations.json",
)
HEAD, FEW = 1 << 20, 8  # bytes searched for image names, and number of names used


@dataclass(frozen=True)
class Source:
    """An annotation file and the folder of its images."""

    file: Path
    images: Path


def sources(root: Path, place: Place, annotations: str | None, images: str | None) -> list[Source]:
    """The files of a split.

    Args:
        annotations, images: paths relative to the root, with {split} for the name of the split; None: the usual ones.

    Raises:
        ValueError: if there are none; the message names the expected paths.
    """
    if place.given:
        files = [_given(Path(path), place.part) for path in place.given]
        return [Source(file, _images(root, file, place.part, images)) for file in files]
    file = _annotations(root, place, annotations)
    return [Source(file, _images(root, file, place.part, images))]


def _given(path: Path, part: Part) -> Path:
    """The file at a path, or the single file inside a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"data.{part} names {str(path)!r}, which is not there.")
    inside = visible_files(path, ".json") or visible_files(path / "annotations", ".json")
    usual = [file for file in inside if file.name == "_annotations.coco.json"]
    if len(usual or inside) != 1:
        count = len(inside) or "no"
        raise ValueError(
            f"data.{part} names the folder {str(path)!r}, which holds {count} .json; name the file."
        )
    return (usual or inside)[0]


def _annotations(root: Path, place: Place, template: str | None) -> Path:
    names = NAMES[place.part]
    if template is not None:
        tried = [root / template.replace("{split}", name) for name in names]
    else:
        tried = [root / file.replace("{}", name) for file in FILES for name in names]
        tried += [root / file for file in WHOLE] if place.whole else []
    for file in tried:
        if file.is_file():
            return file
    if template is None:
        loose = [*visible_files(root / "annotations", ".json"), *visible_files(root, ".json")]
        fitting = [
            file for file in loose if any(name in re.split(r"[\W\d_]+", file.stem.lower()) for name in names)
        ]
        fitting = fitting or (loose if place.whole else [])
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1:
            raise ValueError(
                f"{len(fitting)} files in {str(root)!r} may hold the {place.part} annotations: {fitting[0].name!r},"
                f" {fitting[1].name!r}; data.{place.part}=FILE or data.options.annotations names one."
            )
    raise ValueError(
        f"There is no file {str(tried[0])!r}; data.{place.part}=FILE or data.options.annotations names another."
        f"{dividing(place.part)}"
    )


def _images(root: Path, file: Path, part: Part, template: str | None) -> Path:
    """The image folder of an annotation file: the one that contains most of its first images."""
    if template is not None:
        tried = [root / template.replace("{split}", name) for name in NAMES[part]]
    else:
        tried = list(_usual(root, file, part))
    folders = [folder for folder in dict.fromkeys(tried) if folder.is_dir()]
    if not folders:
        raise ValueError(
            f"There is no folder {str(tried[0])!r}; data.options.images names that of the images."
        )
    if len(folders) == 1:
        return folders[0]
    names = _first_images(file)
    # If a folder is named after the split, the other splits' files are not searched.
    named = [folder for folder in folders if _has_name(os.path.relpath(folder, root), part)] or folders
    for count, places in ((_there, folders), (_held, named)):
        hits = [count(folder, names) for folder in places]
        if any(hits):
            return places[hits.index(max(hits))]
    return named[0]


def _usual(root: Path, file: Path, part: Part) -> Iterator[Path]:
    year = re.search(r"(\d{4})$", file.stem)
    own = re.sub(r"^(instances|image_info|annotations|labels)?_?", "", file.stem)  # "train2017"
    names: Sequence[str] = (own, *NAMES[part]) if own else NAMES[part]
    years = (year[1],) if year else ("2017", "2014")
    for name in dict.fromkeys((*names, *(f"{name}{y}" for name in NAMES[part] for y in years))):
        yield root / name
        yield root / "images" / name
        yield root / name / "images"
        yield root / name / "data"
    yield file.parent
    yield file.parent / "images"
    yield file.parent / "data"
    yield root / "images"
    yield root / "data"
    yield root


def _has_name(path: str, part: Part) -> bool:
    return any(name in path.lower() for name in NAMES[part])


def _there(folder: Path, names: Sequence[str]) -> int:
    """Number of the given files in a folder."""
    return sum((folder / name.replace("\\", "/").lstrip("/")).is_file() for name in names)


def _held(folder: Path, names: Sequence[str]) -> int:
    """Number of the given files that a lookup resolves in a folder."""
    lookup, count = Lookup(folder), 0
    for name in names:
        with suppress(ValueError):  # the name is ambiguous
            count += lookup.find(name) is not None
    return count


def _first_images(file: Path) -> list[str]:
    """Names of the first images in a file, read from its start only."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        while text := stream.read(HEAD):
            file_names = re.findall(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', text)[:FEW]
            if file_names:
                with suppress(ValueError):
                    return [str(json.loads(name)) for name in file_names]
    return []
