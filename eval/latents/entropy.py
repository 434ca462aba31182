"""Order-0 entropy: what a coder would need that knows each symbol's frequency and nothing else."""

import numpy as np
from numpy.typing import NDArray


def entropy_bits(counts: NDArray[np.integer]) -> float:
    """Entropy of a histogram in bits a symbol; 0 for an empty one."""
    seen = counts[counts > 0].astype(np.float64)
    shares = seen / seen.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0


def order0_bits(symbols: NDArray[np.generic]) -> float:
    """Order-0 entropy of one image's symbols (C, h, w), channel by channel, in bits."""
    bits = 0.0
    for channel in symbols:
        _, counts = np.unique(channel, return_counts=True)
        bits += channel.size * entropy_bits(counts)
    return bits
