"""From raw latents to integer symbols and back: uniform steps, for all channels or for each.

A step is an integer count of 2**-16, so a file means the same numbers on every machine.
Legend: C latent channels, h w cells of the latent grid.
"""

import math
import zlib
from collections.abc import Sequence

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


def quality_of_step(step: int, quality_50_step: float) -> float:
    """Returns the quality, beyond 1 to 100 too, that has a step in units of 2**-16."""
    return 50 - 12 * math.log2(step / STEPS_PER_UNIT / quality_50_step)


def step_from_size(step_size: float) -> int:
    """Returns `step_size`, in units of raw latents, as a count of 2**-16 (at least 1).

    Raises:
        QuantizerError: `step_size` is not a number above 0 and below 65,536.
    """
    if not (math.isfinite(step_size) and 0 < step_size < STEPS_PER_UNIT):
        raise QuantizerError(f"found step {step_size}, expected a number above 0 and below 65536")
    return min(max(round(step_size * STEPS_PER_UNIT), 1), MAX_STEP)


def measure_deviations(latents: Sequence[NDArray[np.float32]]) -> tuple[int, ...]:
    """Returns the standard deviation of each channel over images (C, h, w), in units of 2**-16.

    At least 1, and a 64th of the channel's largest latent: steps follow from it, and a channel that
    hardly varies must not take more steps from zero than symbols reach.

    Raises:
        QuantizerError: A latent is not finite, or far beyond what files hold.
    """
    planes = [
        np.concatenate([image[k].ravel() for image in latents]) for k in range(len(latents[0]))
    ]
    with np.errstate(invalid="ignore"):
        sizes = [max(float(p.std(dtype=np.float64)), float(np.abs(p).max()) / 64) for p in planes]
    for size in sizes:
        if not size < MAX_STEP / STEPS_PER_UNIT:  # also true for NaN
            raise QuantizerError(
                f"found latents with a deviation of {size:.3g}, expected finite ones below 65536; "
                "use another dtype if the model overflowed"
            )
    return tuple(max(1, round(size * STEPS_PER_UNIT)) for size in sizes)


def channel_steps(step: int, deviations: Sequence[int]) -> tuple[int, ...]:
    """Returns the step of each channel, in units of 2**-16.

    Args:
        step: In units of 2**-16 deviations.
        deviations: Of each channel, in units of 2**-16.
    """
    half = STEPS_PER_UNIT // 2
    steps = ((step * deviation + half) // STEPS_PER_UNIT for deviation in deviations)
    return tuple(min(max(one, 1), MAX_STEP) for one in steps)


def quantize(raw_latents: NDArray[np.float32], step: int | Sequence[int]) -> NDArray[np.int32]:
    """Rounds raw latents to whole steps.

    Args:
        raw_latents: (C, h, w), any finite values.
        step: In units of 2**-16; one, or one a channel.

    Returns:
        Symbols (C, h, w), at most `MAX_SYMBOL` in size.

    Raises:
        QuantizerError: A latent is not finite, or too many steps away from zero.
    """
    symbols = np.rint(in_steps(raw_latents, step))
    largest = np.max(np.abs(symbols), initial=0.0)
    if not largest <= MAX_SYMBOL:  # also true for NaN
        raise QuantizerError(
            f"found latents up to {largest:.3g} steps from zero, expected finite ones within "
            f"{MAX_SYMBOL}; use a larger step, or another dtype if the model overflowed"
        )
    return symbols.astype(np.int32)


def in_steps(raw_latents: NDArray[np.float32], step: int | Sequence[int]) -> NDArray[np.float64]:
    """Returns raw latents (C, h, w) divided by their step, not rounded; see `quantize`."""
    values: NDArray[np.float64] = raw_latents.astype(np.float64) * (STEPS_PER_UNIT / _column(step))
    return values


def dequantize(symbols: NDArray[np.int32], step: int | Sequence[int]) -> NDArray[np.float32]:
    """Returns the raw latents (C, h, w) that `symbols` stand for.

    Exact in float64 and rounded once to float32, so every machine gets the same bits.

    Args:
        symbols: (C, h, w).
        step: As for `quantize`.
    """
    return (symbols.astype(np.float64) * (_column(step) / STEPS_PER_UNIT)).astype(np.float32)


def symbols_crc32(*symbols: NDArray[np.int32]) -> int:
    """Returns the CRC-32 of symbols as little-endian int32, in C, h, w order or grid after grid."""
    crc32 = 0
    for part in symbols:
        crc32 = zlib.crc32(part.astype("<i4").tobytes(), crc32)
    return crc32


def _column(step: int | Sequence[int]) -> NDArray[np.float64]:
    """One step as it is, those of channels as (C, 1, 1)."""
    steps = np.asarray(step, np.float64)
    return steps if steps.ndim == 0 else steps[:, None, None]
