"""Integer prediction of a symbol's mean and scale from what is decoded already.

Both are linear in integers. The mean is a weighted sum of the neighbours; the scale (an expected
absolute difference) is a weighted sum of how far the near neighbours lie from that mean and of how
much the earlier channels vary around the position. Constants are kept in the units of the raw
latents and divided by the quantiser step, so one set of weights serves every step.

Bounds: symbols below 2**20, weights below 2**17, at most 600 terms: every sum stays below 2**60.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.entropy.lattice import PASSES, WINDOW, Pass
from codec.entropy.tables import FRACTION_BITS

STEP_BITS = 16  # a quantiser step counts units of 2**-16
MEAN_WEIGHT_BITS = 14  # fixed point of mean weights, and of the mean's constant in raw latent units
SCALE_WEIGHT_BITS = 12  # fixed point of scale weights
SCALE_CONSTANT_BITS = SCALE_WEIGHT_BITS + FRACTION_BITS
WEIGHT_LIMIT = 1 << 17
CONSTANT_LIMIT = 1 << 31
MAX_CHANNELS = 64

_PREDICTION_LIMIT = (1 << (20 + FRACTION_BITS)) - 1  # a symbol's own limit, in units of 2**-8


@dataclass(frozen=True, slots=True)
class Predictor:
    """The weights of one pass of one channel.

    Attributes:
        mean_weights: (K,) int64 in units of 2**-14, one per gathered neighbour.
        mean_constant: In raw latent units of 2**-14.
        scale_weights: (M,) int64 in units of 2**-12, one per scale feature.
        scale_constant: In symbols, units of 2**-20.
        scale_raw_constant: In raw latent units of 2**-20.
    """

    mean_weights: NDArray[np.int64]
    mean_constant: int
    scale_weights: NDArray[np.int64]
    scale_constant: int
    scale_raw_constant: int

    def means(self, gathered: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Return (n,) means in units of 2**-8 symbols for (K, n) gathered neighbours."""
        constant = (self.mean_constant << STEP_BITS) // step
        sums = self.mean_weights @ gathered + constant
        shift = MEAN_WEIGHT_BITS - FRACTION_BITS
        means = (sums + (1 << (shift - 1))) >> shift
        clipped: NDArray[np.int64] = np.clip(means, -_PREDICTION_LIMIT, _PREDICTION_LIMIT)
        return clipped

    def scales(self, features: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Return (n,) scales, at least 1, in units of 2**-8 symbols for (M, n) scale features."""
        constant = self.scale_constant + (self.scale_raw_constant << STEP_BITS) // step
        scales = (self.scale_weights @ features + constant) >> SCALE_WEIGHT_BITS
        clipped: NDArray[np.int64] = np.clip(scales, 1, _PREDICTION_LIMIT)
        return clipped


def scale_features(
    gathered: NDArray[np.int64], means: NDArray[np.int64], order: Pass
) -> NDArray[np.int64]:
    """Return the (M, n) features of the scale, in units of 2**-8 symbols.

    First the distances of the near neighbours from the mean, then for each earlier channel the
    distances of the window's rim from its centre.
    """
    num_own, num_near = len(order.offsets), order.num_near
    num_channels, count = (len(gathered) - num_own) // len(WINDOW), gathered.shape[1]
    windows = gathered[num_own:].reshape(num_channels, len(WINDOW), count)
    own = np.abs((gathered[:num_near] << FRACTION_BITS) - means)
    rims = np.abs(windows[:, 1:] - windows[:, :1]) << FRACTION_BITS
    return np.concatenate([own, rims.reshape(num_channels * (len(WINDOW) - 1), count)])


def sizes(num_channels: int) -> Iterator[tuple[int, int]]:
    """Yield (K, M), the numbers of mean and scale weights, of all passes in coding order."""
    for channel in range(num_channels):
        for order in PASSES:
            yield (
                len(order.offsets) + len(WINDOW) * channel,
                order.num_near + (len(WINDOW) - 1) * channel,
            )
