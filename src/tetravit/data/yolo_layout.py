"""Contents of data.yaml or classes.txt of a YOLO set, and the image lists of its splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tetravit.data.files import ENDINGS, UNREADABLE, ending
from tetravit.data.lookup import Lookup, files_below, visible_files
from tetravit.data.parts import NAMES as PART_NAMES
from tetravit.data.parts import Part, Place, dividing, find_part
from tetravit.data.text import read_text, read_yaml

NAMES = "classes.txt"
LISTS = (NAMES, "obj.names", "predefined_classes.txt")
DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
IMAGES = ENDINGS | UNREADABLE


@dataclass(frozen=True)
class Description:
    """A set as described by its files.

    folder: its root. places: paths of the splits in data.yaml. kpt_shape: (keypoints, values per keypoint).
    """

    folder: Path
    class_names: tuple[str, ...]
    file: str = NAMES
    places: dict[Part, tuple[str, ...]] = field(default_factory=dict)
    path: str = ""
    kpt_shape: tuple[int, int] | None = None


def describe(root: Path) -> Description:
    """Class names from classes.txt or data.yaml, and the other entries of data.yaml.

    Raises:
        ValueError: if there are no class names, an index has none, or the file cannot be read.
    """
    folder = root.parent if root.suffix.lower() in (".yaml", ".yml") and root.is_file() else root
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    file = root if folder != root else _yaml(folder)
    content = read_yaml(file) if file is not None else {}
    name = file.name if file is not None else ""
    listed = next((folder / n for n in LISTS if (folder / n).is_file()), None)
    names = _names(content, name) if content else ()
    if listed is not None and folder == root:
        lines = [line.strip() for line in read_text(listed).rstrip().splitlines()]
        if "" in lines:
            raise ValueError(
                f"{listed.name} has the name of a class in every line; line {lines.index('') + 1} is empty."
            )
        if names and lines and tuple(lines) != names:
            raise ValueError(
                f"{listed.name} names {len(lines)} classes and {name} {len(names)}, not the same; remove one of them."
            )
        names = tuple(lines) or names
    if not names:
        raise ValueError(
            f"The class names of {str(folder)!r} stand in classes.txt, one per line, or data.yaml; got none."
        )
    places = {part: _paths(content, part) for part in PART_NAMES}
    path = content.get("path") or ""
    shape = content.get("kpt_shape")
    return Description(
        folder, names, name or NAMES, places, path if isinstance(path, str) else "", _kpt_shape(shape, name)
    )


def image_files(described: Description, place: Place) -> list[Path]:
    """The images of a split, in order.

    Raises:
        ValueError: if there are none; the message names the expected paths.
    """
    part, folder = place.part, described.folder
    if place.given:
        places = [_there(Path(path), f"data.{part} names") for path in place.given]
    else:
        named = [_resolved(described, text) for text in described.places.get(part, ())]
        places = [path for path in named if path is not None]
        if not places or len(places) < len(named):
            places = _usual(folder, place, described)
    files = dict.fromkeys(file for path in places for file in _images(path))
    if not files:
        raise ValueError(f"There are no images in {str(places[0])!r}.")
    return list(files)


def _usual(folder: Path, place: Place, described: Description) -> list[Path]:
    part = place.part
    for parent in ("images", "."):
        if (folder / parent).is_dir() and (part_folder := find_part(str(folder / parent), part)) is not None:
            inner = Path(part_folder) / "images"
            return [inner if inner.is_dir() else Path(part_folder)]
    if place.whole and (folder / "images").is_dir():
        return [folder / "images"]
    texts = described.places.get(part, ())
    if texts:
        raise ValueError(f"{described.file} has its {part} images in {texts[0]!r}, which is not there.")
    raise ValueError(
        f"There is no folder {str(folder / 'images' / part)!r}; {part}: in data.yaml, or data.{part}=FOLDER, names"
        f" it.{dividing(part)}"
    )


def _resolved(described: Description, text: str) -> Path | None:
    """A path of data.yaml: relative to its `path`, beside the file, or, as in Roboflow's files, with extra `../`."""
    text = text.replace("\\", "/")
    bare = text
    while bare.startswith(("../", "./")):
        bare = bare.partition("/")[2]
    above = Path(described.path.replace("\\", "/")) if described.path else Path()
    folder = described.folder
    for path in (folder / above / text, folder / text, folder / above / bare, folder / bare):
        if path.exists():
            return path
    return None


def _there(path: Path, whose: str) -> Path:
    if not path.exists():
        raise ValueError(f"{whose} {str(path)!r}, which is not there.")
    inner = path / "images"
    return inner if inner.is_dir() else path


def _images(path: Path) -> list[Path]:
    """The images below a folder, or those listed in a text file."""
    if path.is_file() and ending(path.name) in IMAGES:
        return [path]
    if path.is_file():
        return _listed(path)
    return sorted(path / name for name in files_below(path) if ending(name) in IMAGES)


def _listed(file: Path) -> list[Path]:
    lookup: Lookup | None = None
    files: list[Path] = []
    missing: list[str] = []
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    for line in lines:
        path = file.parent / line.replace("\\", "/")
        if not path.is_file():
            lookup = lookup or Lookup(file.parent, IMAGES)
            image = lookup.find(line)
            if image is None:
                missing.append(line)
                continue
            path = file.parent / image
        files.append(path)
    if missing:
        raise ValueError(
            f"{len(missing):,} of the {len(lines):,} images that {file.name} lists are not there; the first:"
            f" {missing[0]!r}."
        )
    return files


def _yaml(folder: Path) -> Path | None:
    for name in DESCRIPTIONS:
        if (folder / name).is_file():
            return folder / name
    others = visible_files(folder, ".yaml", ".yml")
    return others[0] if len(others) == 1 else None


def _paths(content: dict[str, Any], part: Part) -> tuple[str, ...]:
    for name in PART_NAMES[part]:
        value = content.get(name)
        if isinstance(value, str) and value:
            return (value,)
        if isinstance(value, list):
            return tuple(str(path) for path in value)
    return ()


def _names(content: dict[str, Any], file: str) -> tuple[str, ...]:
    """The class names: a list, or a mapping from indices that start at 0 to names.

    Raises:
        ValueError: if an index has no name, or `nc` is another number of classes.
    """
    given = content.get("names")
    names: list[str] = []
    if isinstance(given, list):
        names = [str(name) for name in given]
    elif isinstance(given, dict):
        names = _in_order(given, file)
    elif isinstance(given, str) and given:
        names = [given]
    count = content.get("nc")
    if count is not None and str(count).isdecimal():
        names = names or [f"class_{i}" for i in range(int(count))]
        if len(names) != int(count):
            raise ValueError(f"{file} names {len(names)} classes; its nc is {int(count)}.")
    return tuple(names)


def _in_order(given: dict[str, Any], file: str) -> list[str]:
    names: dict[int, str] = {}
    for number, name in given.items():
        if not str(number).strip().isdecimal():
            raise ValueError(f"{file} has class names as NUMBER: NAME; got {str(number)!r}.")
        if int(number) in names:
            raise ValueError(f"{file} gives the class number {int(number)} twice.")
        names[int(number)] = str(name)
    for wanted in range(len(names)):
        if wanted not in names:
            raise ValueError(
                f"{file} counts its classes from 0 without gaps; {wanted} of 0 to {max(names)} has no name."
            )
    return [names[wanted] for wanted in range(len(names))]


def _kpt_shape(value: Sequence[Any] | None, file: str) -> tuple[int, int] | None:
    if value is None or value == "":
        return None
    try:
        count, each = (int(number) for number in value)
    except (TypeError, ValueError):
        raise ValueError(f"kpt_shape in {file} is [keypoints, numbers each]; got {value!r}.") from None
    return count, each
