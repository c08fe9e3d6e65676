"""Frames of videos, animated GIFs and cameras, and videos with drawn predictions.

Pillow reads and writes GIFs; OpenCV (extra `video`) all other formats.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence, UnidentifiedImageError

from tetravit.predictors.parts.predictions import Frame, Prediction, Source

ENDINGS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"))
GIF_MS = 100  # default duration of a GIF frame


def is_video(path: Path) -> bool:
    """Whether a file has frames: a video by its extension, or a GIF with more than one."""
    if path.suffix.lower() in ENDINGS:
        return True
    if path.suffix.lower() != ".gif":
        return False
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except (OSError, UnidentifiedImageError):
        return False


def expanded(files: Iterable[Path]) -> Iterator[Source]:
    """Image files, and the frames of videos, in order."""
    for file in files:
        if not is_video(file):
            yield file
        elif file.suffix.lower() == ".gif":
            yield from _gif(file)
        else:
            yield from _captured(str(file), file.name)


def frames(file: Path) -> Iterator[Frame]:
    """The frames of a video or an animated GIF, one at a time.

    Raises:
        ValueError: if the video is unreadable, or OpenCV is not installed.
    """
    if file.suffix.lower() == ".gif":
        return _gif(file)
    return _captured(str(file), file.name)


def count_frames(file: Path) -> int | None:
    """Number of frames of a video; None: unknown."""
    if file.suffix.lower() == ".gif":
        try:
            with Image.open(file) as picture:
                return getattr(picture, "n_frames", 1)
        except (OSError, EOFError, ValueError):
            return None
    cv2 = opencv()
    capture = cv2.VideoCapture(str(file))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count if count > 0 else None


def webcam(number: int) -> Iterator[Frame]:
    """The frames of a camera, until it stops.

    Raises:
        ValueError: if the camera does not exist, or OpenCV is not installed.
    """
    return _captured(number, f"webcam {number}")


class Videos:
    """Writes drawn frames as one video per source in a folder: MP4, or GIF for GIFs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self._writer: Any = None
        self._name = ""
        self._frames: list[Image.Image] = []
        self._ms = GIF_MS

    def add(self, prediction: Prediction) -> None:
        frame = prediction.image
        assert isinstance(frame, Frame)
        if frame.name != self._name:
            self.close()
            self._name, self._ms = frame.name, frame.place.get("frame_ms", GIF_MS)
        picture = prediction.draw()
        if Path(frame.name).suffix.lower() == ".gif":
            self._frames.append(picture)
            return
        cv2 = opencv()
        even = picture.crop(
            (0, 0, picture.width // 2 * 2, picture.height // 2 * 2)
        )  # encoders require even sides
        if self._writer is None:
            self.files.append(self.folder / f"{Path(frame.name).stem}.mp4")
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.files[-1]), codec, 1000 / self._ms, even.size)
        self._writer.write(np.asarray(even)[:, :, ::-1])

    def close(self) -> None:
        """Finish the current video."""
        if self._frames:
            self.files.append(self.folder / Path(self._name).name)
            first, *others = self._frames
            first.save(self.files[-1], save_all=True, append_images=others, duration=self._ms, loop=0)
        if self._writer is not None:
            self._writer.release()
        self._frames, self._writer = [], None


def _gif(file: Path) -> Iterator[Frame]:
    with Image.open(file) as picture:
        time_ms = 0
        for i, image in enumerate(ImageSequence.Iterator(picture)):
            ms = image.info.get("duration") or GIF_MS
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            yield Frame(file.name, pixels, {"frame": i, "time_s": time_ms / 1000, "frame_ms": ms})
            time_ms += ms


def _captured(source: str | int, name: str) -> Iterator[Frame]:
    capture = opencv().VideoCapture(source)
    if not capture.isOpened():
        raise ValueError(
            f"No camera {source}." if isinstance(source, int) else f"{source} is no readable video."
        )
    cv2 = opencv()
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    try:
        i = 0
        while True:
            read, pixels = capture.read()
            if not read:
                return
            image = torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::-1])).permute(2, 0, 1)
            yield Frame(name, image, {"frame": i, "time_s": round(i / rate, 3), "frame_ms": 1000 / rate})
            i += 1
    finally:
        capture.release()


def opencv() -> Any:
    """Raises: ValueError if OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        raise ValueError("Videos and cameras need the extra video: pip install 'tetravit[video]'.") from None
    return cv2
