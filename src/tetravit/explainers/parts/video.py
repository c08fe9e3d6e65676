"""Maps of every frame of a video, an animated GIF or a folder of frames, as a video, a GIF or frames.

Frames are read, explained and written one at a time. One scale for the clip needs all maps first: they are stored in
a temporary file and the frames are read twice, so memory does not grow with the length of the clip.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from tetravit.draw.base import INK, PAPER, sans
from tetravit.draw.heat import Scale, coloured, scale_of
from tetravit.explainers.base import Map
from tetravit.explainers.parts.explanation import Explanation, explain
from tetravit.explainers.parts.pictures import over, rgb
from tetravit.explainers.parts.view import View
from tetravit.models import Model
from tetravit.predictors.parts.predictions import Frame, pixels_of
from tetravit.predictors.parts.sources import find_images
from tetravit.predictors.parts.video import GIF_MS, count_frames, frames

Scaling = Literal["clip", "frame"]
Heads = Literal["mean", "each"]
WIDTH = 360  # pixels of one panel
COLUMNS = 3
GAP = 4  # pixels between two panels: even, as a video's sides are


def explain_video(
    model: Model,
    clip: Path,
    into: Path,
    method: str = "class-attention",
    *,
    heads: Heads = "mean",
    scale: Scaling = "clip",
    as_published: bool = False,
    announce: Callable[[str], object] = lambda line: None,
    **settings: Any,
) -> int:
    """Write the maps of every frame beside the frame.

    Args:
        clip: a video (extra `video`), an animated GIF or a folder of frames, in the order of their names.
        into: a file that ends in .mp4 (extra `video`) or .gif, or a folder for frames.
        heads: "mean": their mean; "each": all, side by side.
        scale: "clip": one colour range for the clip, without flicker; "frame": one per frame, as published.
        as_published: blocks of colour without the frame below, min-max range per frame.
        announce: prints a line if the clip ends early.
        settings: of `explain`.

    Returns:
        The number of frames written.

    Raises:
        ValueError: for a clip that cannot be read, a method without places or a name that no writer takes.
    """
    if scale not in ("clip", "frame"):
        raise ValueError(f"--scale of a video is clip or frame; got {scale!r}.")
    if heads not in ("mean", "each"):
        raise ValueError(f"--heads takes mean or each; got {heads!r}.")
    how: Any = "published" if as_published else "smooth"
    per_frame = scale == "frame" or as_published
    with tempfile.TemporaryFile() as store, _Writer(into) as writer:
        low, high, signed, count = np.inf, -np.inf, False, 0
        first: Map | None = None
        if not per_frame:
            for _, e in _explained(model, clip, method, announce, settings):
                first = _only(e, heads, method)
                values = first.values.numpy().astype(np.float32)
                low, high = min(low, float(values.min())), max(high, float(values.max()))
                signed = first.signed
                np.save(store, values)
                np.save(store, np.asarray(_numbers(e.view)))
                count += 1
            store.seek(0)
        fixed = None if per_frame else _fixed(low, high, signed)
        written = 0
        if per_frame:
            parts = _once(model, clip, method, announce, heads, settings)
        else:
            parts = _again(clip, store, first, count)
        for frame, one, seen in parts:
            writer.add(panels(frame, one, seen, fixed, how), _milliseconds(frame))
            written += 1
    if not written:
        raise ValueError(f"{clip} has no frames that can be read.")
    return written


def panels(frame: Frame, one: Map, view: View, fixed: Scale | None, how: Any) -> Image.Image:
    """A frame and its maps beside each other."""
    image = Image.fromarray(rgb(frame.pixels))
    size = (WIDTH, max(2, round(image.height * WIDTH / image.width)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    base = np.asarray(small)
    shown: list[tuple[Image.Image, str]] = [(small, "frame")]
    for i in range(len(one.slices) or 1):
        part = one.select(i).mean() if one.slices else one
        scale = fixed or scale_of(part.values.numpy(), signed=one.signed)
        if how == "published":  # the colours alone
            values, defined = view.paint(part, (size[1], size[0]), how)
            pixels = np.where(defined.numpy()[..., None], coloured(values.numpy(), scale), 255)
            picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
        else:
            picture = over(base, view, part, scale, how)
        shown.append((picture, one.slices[i] if one.slices else "mean"))
    columns = min(COLUMNS, len(shown)) if len(shown) > 2 else len(shown)
    rows = -(-len(shown) // columns)
    line = 22
    wide = size[0] + GAP
    canvas = Image.new("RGB", (columns * wide - GAP, (rows * (size[1] + line)) // 2 * 2), PAPER)
    draw = ImageDraw.Draw(canvas)
    for n, (picture, title) in enumerate(shown):
        x, y = n % columns * wide, n // columns * (size[1] + line)
        canvas.paste(picture, (x, y))
        draw.text((x + 6, y + size[1] + 3), title, INK, sans(13))
    return canvas


def _explained(
    model: Model, clip: Path, method: str, announce: Callable[[str], object], settings: dict[str, Any]
) -> Iterator[tuple[Frame, Explanation]]:
    """Every frame with its explanation; a line where the clip ends early."""
    count, broken = 0, False
    for frame in _readable(clip):
        if frame is None:
            broken = True
            break
        yield frame, explain(model, frame.pixels, method, **settings)
        count += 1
    expected = None if clip.is_dir() else count_frames(clip)
    if broken or (expected is not None and count < expected):
        of = f" of {expected}" if expected is not None and expected > count else ""
        announce(f"{clip} ends early: {count}{of} frames can be read.")


def _readable(clip: Path) -> Iterator[Frame | None]:
    """The frames that can be read; None at last where reading fails."""
    frame = read(clip)
    while True:
        try:
            yield next(frame)
        except StopIteration:
            return
        except (OSError, EOFError, SyntaxError):  # raised by Pillow for truncated files
            yield None
            return


def _once(
    model: Model,
    clip: Path,
    method: str,
    announce: Callable[[str], object],
    heads: Heads,
    settings: dict[str, Any],
) -> Iterator[tuple[Frame, Map, View]]:
    for frame, e in _explained(model, clip, method, announce, settings):
        assert e.view is not None
        yield frame, _only(e, heads, method), e.view


def _again(clip: Path, store: IO[bytes], first: Map | None, count: int) -> Iterator[tuple[Frame, Map, View]]:
    """The frames in a second pass, with the stored maps."""
    import torch

    if first is None:
        return
    for _, frame in zip(range(count), read(clip), strict=False):  # as many frames as in the first pass
        values = torch.from_numpy(np.load(store))
        sides = np.load(store).reshape(4, 2).tolist()
        yield frame, replace(first, values=values), View(*((int(a), int(b)) for a, b in sides))


def read(clip: Path) -> Iterator[Frame]:
    """The frames of a video, a GIF or a folder.

    Raises:
        ValueError: for a clip that does not exist or is empty.
    """
    if clip.is_dir():
        for i, file in enumerate(find_images([clip])):
            yield Frame(clip.name, pixels_of(file), {"frame": i, "frame_ms": 1000 / 30})
        return
    if not clip.is_file():
        raise ValueError(f"There is no video or folder {str(clip)!r}.")
    yield from frames(clip)


def _numbers(view: View | None) -> list[tuple[int, int]]:
    assert view is not None
    return [view.picture, view.resized, view.offset, view.sides]


def _only(e: Explanation, heads: Heads, method: str) -> Map:
    one = e.maps[0]
    if not one.has_places:
        raise ValueError(f"The maps of {method} have no places in the picture; a video needs some.")
    return one.mean() if heads == "mean" else one


def _fixed(low: float, high: float, signed: bool) -> Scale:
    if signed:
        top = max(abs(low), abs(high))
        return Scale(-top, top, True)
    return Scale(low, high)


def _milliseconds(frame: Frame) -> float:
    return float(frame.place.get("frame_ms", GIF_MS))


class _Writer:
    """Frames into a file or a folder, one at a time; what was written stays where reading fails later."""

    def __init__(self, into: Path) -> None:
        self.into, self.kind, self.count = into, into.suffix.lower(), 0
        self._video: Any = None
        self._kept: list[Image.Image] = []
        self._ms: float = GIF_MS
        if self.kind not in (".mp4", ".gif", ""):
            raise ValueError(f"--into is a .mp4 file, a .gif file or a folder; got {str(into)!r}.")
        (into if self.kind == "" else into.parent).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "_Writer":
        return self

    def add(self, picture: Image.Image, ms: float) -> None:
        self.count += 1
        self._ms = ms
        if self.kind == "":
            picture.save(self.into / f"{self.count:06d}.png")
        elif self.kind == ".gif":  # Pillow writes a GIF from all frames at once: here one byte per pixel
            self._kept.append(picture.quantize(128))
        else:
            from tetravit.predictors.parts.video import opencv

            cv2 = opencv()
            if self._video is None:
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                self._video = cv2.VideoWriter(str(self.into), codec, 1000 / ms, picture.size)
            self._video.write(np.asarray(picture)[:, :, ::-1])

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.release()
        if self._kept:
            first, *others = self._kept
            first.save(self.into, save_all=True, append_images=others, duration=round(self._ms), loop=0)
