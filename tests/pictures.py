"""Small pictures that several test files draw on."""

import io

import numpy as np
import PIL.Image
import PIL.ImageDraw

from codec.images import Pixels


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Random pixels, uint8 (height, width, channels), or (height, width) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: PIL.Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def shape_mask(height: int = 48, width: int = 64) -> Pixels:
    """A ring with soft edges, as an editor would cut one out."""
    large = PIL.Image.new("L", (4 * width, 4 * height))
    draw = PIL.ImageDraw.Draw(large)
    draw.ellipse((20, 20, 4 * width - 20, 4 * height - 20), fill=255)
    draw.ellipse((70, 60, 4 * width - 70, 4 * height - 60), fill=0)
    return np.array(large.resize((width, height), PIL.Image.Resampling.BOX))
