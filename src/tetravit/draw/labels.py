"""Draw the predicted classes of an image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from tetravit.draw.base import BAR, INK, PAPER, SOFT, TRACK, WIDTH, fitted, sans, shortened


def labelled(image: Tensor, guesses: Sequence[tuple[str, float]]) -> Image.Image:
    """An image with one bar per class below it, the most probable first.

    Args:
        image: uint8 (3, Hi, Wi).
        guesses: name and probability in 0..1.
    """
    picture = fitted(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
    width = max(WIDTH, picture.width)
    unit = max(16, width // 26)
    font = sans(unit)
    line, margin = round(unit * 2.3), unit
    canvas = Image.new("RGB", (width, picture.height + line * len(guesses) + margin), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (name, score) in enumerate(guesses):
        top = picture.height + margin // 2 + i * line
        share = f"{100 * score:.1f} %"
        room = width - 3 * margin - draw.textlength(share, font)
        draw.text((margin, top), shortened(name, font, room), INK if i == 0 else SOFT, font)
        draw.text((width - margin, top), share, INK if i == 0 else SOFT, font, anchor="ra")
        bottom = top + round(unit * 1.45)
        draw.rounded_rectangle((margin, bottom, width - margin, bottom + unit // 4), unit // 8, TRACK)
        end = margin + round((width - 2 * margin) * score)
        if end > margin + unit // 4:
            draw.rounded_rectangle((margin, bottom, end, bottom + unit // 4), unit // 8, BAR)
    return canvas
