"""Pictures of what an autoencoder does: reconstructions, and ways between two images.

Shapes: N images, H W pixels, C latent channels, h w latent grid.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from codec.images import Pixels

GAP = 4
"""Pixels of white between pictures."""
COLUMNS = 8


def reconstruction_grid(
    originals: Sequence[Pixels], reconstructions: Sequence[Pixels], columns: int = COLUMNS
) -> Pixels:
    """Originals, each above its reconstruction: uint8 (H', W', 3).

    Args:
        originals: uint8 (H, W, 3) each, all of one size.
        reconstructions: as many, of the same size.
        columns: pictures beside one another before a new pair of rows begins.

    Raises:
        ValueError: there is none, or not as many originals as reconstructions.
    """
    if not len(originals) or len(originals) != len(reconstructions):
        raise ValueError(
            f"found {len(originals)} originals and {len(reconstructions)} reconstructions, "
            "expected equally many and at least one"
        )
    rows: list[Sequence[Pixels]] = []
    for start in range(0, len(originals), columns):
        part = slice(start, start + columns)
        rows += [originals[part], reconstructions[part]]
    return tiled(rows)


def interpolation_strip(
    decode: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, steps: int = COLUMNS
) -> Pixels:
    """What lies between two images, linear in latents: uint8 (H', W', 3), from left to right.

    Args:
        decode: raw latents (N, C, h, w) to images (N, 3, H, W), about [-1, 1].
        first: raw latents (C, h, w) of the picture on the left.
        second: those of the picture on the right.
        steps: pictures, at least 2, with both ends.
    """
    assert steps >= 2
    shares = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)
    between = torch.lerp(first[None], second[None], shares[:, None, None, None])
    return tiled([list(to_pixels(decode(between)))])


def to_pixels(sample: Tensor) -> Pixels:
    """Decoder output (N, 3, H, W), about [-1, 1], to uint8 (N, H, W, 3)."""
    levels = torch.round((sample.detach().float().clamp(-1, 1) + 1) * 127.5)
    return levels.byte().permute(0, 2, 3, 1).cpu().numpy()


def tiled(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """Pictures of one size in rows on white, with gaps between them."""
    height, width = rows[0][0].shape[:2]
    across, down = max(map(len, rows)), len(rows)
    canvas = np.full(
        (down * (height + GAP) - GAP, across * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = picture
    return canvas
