"""What symbols a coder takes, and the errors that say so."""

import numpy as np
from numpy.typing import NDArray

from codec.entropy.residuals import SYMBOL_LIMIT
from codec.errors import LatentCodecError

MAX_STEP = (1 << 32) - 1


class SymbolsError(LatentCodecError):
    """Symbols that the coder cannot take: wrong type, shape or range."""


def check_symbols(symbols: NDArray[np.int32], step: int, num_channels: int) -> None:
    """Refuses symbols that are not int32 (C, h, w) within the limit, or a step out of range."""
    if symbols.dtype != np.int32:
        raise SymbolsError(
            f"symbols of type {symbols.dtype} were found where int32 is expected; round the "
            "latents divided by the step and convert them"
        )
    check_shape(symbols.shape, step, num_channels)
    if symbols.max() >= SYMBOL_LIMIT or symbols.min() <= -SYMBOL_LIMIT:
        raise SymbolsError(
            f"symbols from {symbols.min()} to {symbols.max()} were found where they must lie "
            f"between -{SYMBOL_LIMIT} and {SYMBOL_LIMIT}; use a larger step"
        )


def check_shape(shape: tuple[int, ...], step: int, num_channels: int) -> None:
    """Refuses a shape or step that cannot be coded."""
    if len(shape) != 3 or shape[0] != num_channels or min(shape) < 1:
        raise SymbolsError(
            f"symbols of shape {tuple(shape)} were found where ({num_channels}, "
            "height, width) is expected; use the coder that belongs to these latents"
        )
    if not 1 <= step <= MAX_STEP:
        raise SymbolsError(
            f"a quantiser step of {step} / 65536 was found where 1 to {MAX_STEP} are possible"
        )
