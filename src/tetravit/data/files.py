"""Image files: supported extensions, and listing the files below a folder. Shared by all verbs."""

import importlib.util
import os
import unicodedata
from collections.abc import Iterable
from functools import cache

from tetravit.data.problems import Problems
from tetravit.data.storage import storage_of

# fmt: off
HEIF = frozenset((".heic", ".heif", ".hif"))
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None  # adds HEIC to Pillow
ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".jp2", ".tga", ".avif", ".mpo",
)) | (HEIF if HAS_HEIF else frozenset())
UNREADABLE = frozenset((
    ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef",
    ".psd", ".svg", ".eps", ".jxl", ".exr", ".hdr", ".dcm", ".nii", ".npy", ".mp4", ".mov", ".avi", ".mkv",
)) | (frozenset() if HAS_HEIF else HEIF)  # images and videos that need a conversion first
UNREAD = "cannot be read"  # in messages about files that are images
JUNK_FOLDERS = frozenset(("@eadir", "__macosx", "lost+found", "$recycle.bin", "#recycle"))
JUNK_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"))
# fmt: on


CODECS = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}
OPTIONAL = {".avif": "AVIF", ".webp": "WEBP", ".jp2": "JPEG2000"}  # missing in some builds of Pillow


@cache
def lacking() -> frozenset[str]:
    """Extensions of `ENDINGS` that the installed Pillow cannot decode."""
    from PIL import Image, features  # slow import, needed only for listing

    Image.init()
    return frozenset(
        ending
        for ending, name in OPTIONAL.items()
        if name not in Image.OPEN or not features.check(CODECS[name])
    )


def ending(name: str) -> str:
    """The extension of a file name, lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def same_name(name: str) -> str:
    """A name in composed Unicode form (NFC): macOS and Linux encode accents differently."""
    return unicodedata.normalize("NFC", name)


def is_image(name: str, channels: int = 3) -> bool:
    """Whether the extension is that of an image; arrays are images with channels other than 1 or 3."""
    known = ending(name) in ENDINGS - lacking() or (channels not in (1, 3) and ending(name) == ".npy")
    return known and not name.startswith(".")


def is_junk_folder(name: str) -> bool:
    """Whether a folder belongs to the operating system: hidden, thumbnails, trash."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def images_below(
    folder: str,
    problems: Problems | None = None,
    *,
    channels: int = 3,
    times: dict[str, int] | None = None,
) -> list[str]:
    """Sorted paths of the images at any depth below `folder`, relative to it, with `/`.

    Hidden files, system folders and links to a parent folder are skipped. problems: counts other files, by extension.
    channels: of the images. times: receives every local folder with its modification time in nanoseconds, read before
    it was listed.

    Raises:
        OSError: if a folder cannot be listed.
    """
    storage = storage_of(folder)
    images: list[str] = []

    def walk(place: str, prefix: str, above: frozenset[str]) -> None:
        here = os.path.realpath(place) if "://" not in place else place
        if here in above:
            return
        if times is not None:
            times[place] = os.stat(place).st_mtime_ns
        for entry in storage.list(place):
            path = f"{prefix}{entry.name}"
            if entry.is_folder:
                if not is_junk_folder(entry.name):
                    walk(storage.join(place, entry.name), f"{path}/", above | {here})
            elif is_image(entry.name, channels):
                images.append(path)
            elif problems is not None and not entry.name.startswith("."):
                count_other(problems, entry.name, storage.join(folder, path))

    walk(folder, "", frozenset())
    return sorted(images)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises: ValueError if the folder does not exist."""
    if not os.path.isdir(path):
        text = repr(os.fspath(path))
        raise ValueError(
            f"{text} is a file, not a folder." if os.path.exists(path) else f"There is no folder {text}."
        )


def check_target(path: str | os.PathLike[str]) -> None:
    """Raises: ValueError if the path of an output folder is a file."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"--to takes a folder; {os.fspath(path)!r} is a file.")


def count_other(problems: Problems, name: str, where: str) -> None:
    """Count a file that is not an image, unless it belongs to the operating system."""
    if name.lower() in JUNK_FILES:
        return
    kind = ending(name)
    if kind in lacking():
        problems.add(
            f"files left out: {kind} {UNREAD} by the installed Pillow; install another build of it", where
        )
    elif kind in UNREADABLE:
        problems.add(f"files left out: {kind} {UNREAD}; convert them to .jpg or .png", where)
    else:
        problems.add(f"files left out: {kind or 'without an ending'}, not an image", where)


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names, quoted, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
