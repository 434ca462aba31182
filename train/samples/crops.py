"""Where a random crop lies, and cutting it out of an image in memory or on a device.

The place is drawn once, from a generator of the sample's own, and both ways of cutting follow it.
On a device the image is scaled as Pillow does it, first to the width, then to the height, with 8
bits between, so that the two differ only where a value lies at the edge of rounding.
"""

from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.images import Pixels
from train.sections import DataConfig


class Box(NamedTuple):
    """A square of an image, and whether its crop is mirrored."""

    top: int
    left: int
    side: int
    flip: bool


def draw_box(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Box:
    """A random place for a crop, which reads more pixels than it has: scaled down at random.

    Scaling down by up to `min_scale` hides what lossy sources lost, chroma at half resolution above
    all. An image smaller than the crop is scaled up to it. Rendered factors are never mirrored
    (nor scaled, since they have the crop's size): that would change them.
    """
    side = min(round(config.crop_size / rng.uniform(config.min_scale, 1.0)), height, width)
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    flip = config.flip and config.factors == 0 and rng.random() < 0.5
    return Box(top, left, side, flip)


def cut(pixels: Pixels, box: Box, size: int) -> Pixels:
    """The crop uint8 (size, size, 3) of an image uint8 (H, W, 3), by Pillow's bicubic filter."""
    crop = pixels[box.top : box.top + box.side, box.left : box.left + box.side]
    if box.side != size:
        scaled = PIL.Image.fromarray(crop).resize((size, size), PIL.Image.Resampling.BICUBIC)
        crop = np.asarray(scaled)
    return crop[:, ::-1] if box.flip else crop


def cut_tensor(pixels: Tensor, box: Box, size: int) -> Tensor:
    """The crop uint8 (3, size, size) of an image uint8 (3, H, W), on the image's device."""
    crop = pixels[:, box.top : box.top + box.side, box.left : box.left + box.side]
    if box.side != size:
        crop = _scale(_scale(crop, (box.side, size)), (size, size))
    return crop.flip(2) if box.flip else crop


def _scale(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Scale uint8 (3, H, W) by Pillow's bicubic filter, along one axis."""
    scaled = F.interpolate(pixels[None].float(), shape, mode="bicubic", antialias=True)
    return scaled[0].round().clamp(0, 255).to(torch.uint8)
