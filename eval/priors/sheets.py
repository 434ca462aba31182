"""Pictures for people: samples of each class, and samples beside the nearest real images.

Legend: H W pixels.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from codec import images
from codec.images import Pixels
from codec.outputs import atomic_output

SHEET_BYTES = 300_000  # most that a picture of the documentation may weigh
_QUALITIES = range(90, 20, -10)
_GAP = 4
_TEXT = 15  # pixels, height of letters
_LINE = _TEXT + 6

Row = tuple[str, Sequence[Pixels]]
Cell = tuple[Pixels, str]


def class_sheet(rows: Sequence[Row], side: int = 112) -> Pixels:
    """Lay pictures out with a row a class and its name before it: uint8 (H', W', 3).

    Args:
        rows: names, and pictures uint8 (H, W, 3).
        side: of the squares that they are shown in, in pixels.
    """
    font = PIL.ImageFont.load_default(_TEXT)
    margin = int(max(font.getlength(name) for name, _ in rows)) + 3 * _GAP
    across = max(len(pictures) for _, pictures in rows)
    step = side + _GAP
    sheet = PIL.Image.new("RGB", (margin + across * step, len(rows) * step), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for line, (name, pictures) in enumerate(rows):
        middle = line * step + side // 2
        draw.text((_GAP, middle), name, fill="black", font=font, anchor="lm")
        for place, pixels in enumerate(pictures):
            sheet.paste(_small(pixels, side), (margin + place * step, line * step))
    return np.asarray(sheet)


def comparison_sheet(groups: Sequence[Sequence[Cell]], columns: int = 4, side: int = 112) -> Pixels:
    """Lay groups of pictures out with a line of text below each picture: uint8 (H', W', 3).

    Args:
        groups: pictures that belong together, uint8 (H, W, 3), with their texts.
        columns: groups beside one another.
        side: as for `class_sheet`.
    """
    font = PIL.ImageFont.load_default(_TEXT - 2)
    step, size = side + _GAP, max(len(group) for group in groups)
    width, height = size * step + 4 * _GAP, step + _LINE
    rows = -(-len(groups) // columns)
    sheet = PIL.Image.new("RGB", (min(columns, len(groups)) * width, rows * height), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, group in enumerate(groups):
        left, top = number % columns * width, number // columns * height
        for place, (pixels, text) in enumerate(group):
            x = left + place * step
            sheet.paste(_small(pixels, side), (x, top))
            draw.text((x + 2, top + side + 2), text, fill="black", font=font)
    return np.asarray(sheet)


def save_webp(pixels: Pixels, path: Path, most_bytes: int = SHEET_BYTES) -> None:
    """Save a picture as WebP in the best quality, and then size, that weighs no more than so much.

    Args:
        pixels: uint8 (H, W, 3).
        path: where.
        most_bytes: limit of the file's length.
    """
    picture = PIL.Image.fromarray(pixels)
    while True:
        for quality in _QUALITIES:
            stream = io.BytesIO()
            images.save(np.asarray(picture), stream, format="WEBP", quality=quality)
            if stream.tell() <= most_bytes or min(picture.size) < 2:
                with atomic_output(path) as file:
                    file.write(stream.getvalue())
                return
        picture = picture.reduce(2)


def _small(pixels: Pixels, side: int) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    return picture
