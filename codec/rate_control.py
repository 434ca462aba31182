"""How large a file shall be: a quality, a step, or the best that fits a number of bytes.

A target is met by packing the same latents again at other qualities. The encoder network runs once
and the decoder never; whole files are compared, with their header and optional chunks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from codec.quantizer import QuantizerError

LOWEST, HIGHEST = 10, 1000  # quality in tenths
FULL_TRADE = 0.1  # squared steps that a bit may cost, at low qualities
_TRADE_FULL_BELOW, _TRADE_NONE_FROM = 35.0, 50.0  # qualities between which it fades


class RateError(QuantizerError):
    """A size that no file of the image can have, or wishes that exclude each other."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks of a file's size; at most one of these, and none for the default quality.

    Attributes:
        quality: 1 to 100.
        step: Quantiser step.
        target_bytes: The largest file that will do.
        target_bpp: The same in bits per pixel of the image.

    Raises:
        RateError: Two are given, or a target is not a number above 0.
    """

    quality: float | None = None
    step: float | None = None
    target_bytes: int | None = None
    target_bpp: float | None = None

    def __post_init__(self) -> None:
        names = ("quality", "step", "target_bytes", "target_bpp")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise RateError(f"found {' and '.join(given)}, expected one of them")
        for name in ("target_bytes", "target_bpp"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RateError(f"found {name} {value}, expected a number above 0")

    @property
    def has_target(self) -> bool:
        """Whether the quality is to be found."""
        return self.target_bytes is not None or self.target_bpp is not None

    def limit(self, width: int, height: int) -> int:
        """Returns the target in bytes for an image of so many pixels."""
        if self.target_bytes is not None:
            return self.target_bytes
        assert self.target_bpp is not None
        return int(self.target_bpp * width * height / 8)


def largest_that_fits(pack: Callable[[float], bytes], limit: int) -> bytes:
    """Returns the file of the highest quality, to a tenth, that has at most `limit` bytes.

    Args:
        pack: Gives the file at a quality, 1 to 100; its size grows with the quality.
        limit: In bytes.

    Raises:
        RateError: Even the file at quality 1 is larger.
    """
    best = pack(LOWEST / 10)
    if len(best) > limit:
        raise RateError(
            f"found {len(best)} bytes for the smallest file of this image, expected at most "
            f"{limit}; give a larger target or a smaller image"
        )
    low, high = LOWEST + 1, HIGHEST
    while low <= high:
        middle = (low + high) // 2
        data = pack(middle / 10)
        if len(data) <= limit:
            best, low = data, middle + 1
        else:
            high = middle - 1
    return best


def trade_at(quality: float) -> float:
    """Returns how much error a bit may cost at a quality; see `codec.entropy.choosing`.

    At high qualities plain rounding is as good, at low ones this saves up to a tenth of the bytes
    for the same picture.
    """
    fade = (_TRADE_NONE_FROM - quality) / (_TRADE_NONE_FROM - _TRADE_FULL_BELOW)
    return FULL_TRADE * min(max(fade, 0.0), 1.0)
