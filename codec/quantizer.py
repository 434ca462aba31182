"""From raw latents to integer symbols and back: one uniform step for the whole image.

The step is an integer count of 2**-16, so a file means the same numbers on every machine.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from codec.bitstream import STEPS_PER_UNIT
from codec.entropy.residuals import SYMBOL_LIMIT
from codec.errors import LatentCodecError

MAX_STEP = (1 << 32) - 1
MAX_SYMBOL = SYMBOL_LIMIT - 1  # what the entropy coder takes, far beyond what models make


class QuantizerError(LatentCodecError):
    """A quality or step out of range, or latents that cannot be quantised."""


def step_from_quality(quality: float, quality_50_step: float) -> int:
    """Returns the step of `quality` in units of 2**-16.

    Twelve points of quality halve the step; quality 50 has the model's own `quality_50_step`.

    Raises:
        QuantizerError: `quality` is not within 1..100.
    """
    if not 1 <= quality <= 100:
        raise QuantizerError(f"found quality {quality}, expected a number from 1 to 100")
    return step_from_size(quality_50_step * 2 ** ((50 - quality) / 12))


def step_from_size(step_size: float) -> int:
    """Returns `step_size`, in units of raw latents, as a count of 2**-16 (at least 1).

    Raises:
        QuantizerError: `step_size` is not a number above 0 and below 65,536.
    """
    if not (math.isfinite(step_size) and 0 < step_size < STEPS_PER_UNIT):
        raise QuantizerError(f"found step {step_size}, expected a number above 0 and below 65536")
    return min(max(round(step_size * STEPS_PER_UNIT), 1), MAX_STEP)


def quantize(raw_latents: NDArray[np.float32], step: int) -> NDArray[np.int32]:
    """Rounds raw latents to whole steps.

    Args:
        raw_latents: (C, h, w), any finite values.
        step: In units of 2**-16.

    Returns:
        Symbols (C, h, w), at most `MAX_SYMBOL` in size.

    Raises:
        QuantizerError: A latent is not finite, or too many steps away from zero.
    """
    symbols = np.rint(raw_latents.astype(np.float64) * (STEPS_PER_UNIT / step))
    largest = np.max(np.abs(symbols), initial=0.0)
    if not largest <= MAX_SYMBOL:  # also true for NaN
        raise QuantizerError(
            f"found latents up to {largest:.3g} steps from zero, expected finite ones within "
            f"{MAX_SYMBOL}; use a larger step, or another dtype if the model overflowed"
        )
    return symbols.astype(np.int32)


def dequantize(symbols: NDArray[np.int32], step: int) -> NDArray[np.float32]:
    """Returns the raw latents (C, h, w) that `symbols` stand for.

    Exact in float64 and rounded once to float32, so every machine gets the same bits.
    """
    return (symbols.astype(np.float64) * (step / STEPS_PER_UNIT)).astype(np.float32)


def symbols_crc32(symbols: NDArray[np.int32]) -> int:
    """Returns the CRC-32 of the symbols as little-endian int32 in C, h, w order."""
    return zlib.crc32(symbols.astype("<i4").tobytes())
