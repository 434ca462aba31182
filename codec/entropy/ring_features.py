"""What the tables that travel in a file predict a symbol from: rings of neighbours, and liveliness.

Legend: h w cells of the latent grid, r rings of neighbours at equal distance, n positions, K
neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.entropy.lattice import BLOCK, PASSES, WINDOW, Neighbourhood, Pass, mirror
from codec.entropy.tables import FRACTION_BITS

Integers = NDArray[np.int64]

MEAN_BITS = 7  # fixed point of the weights of rings
MAX_SCALE = (1 << (20 + FRACTION_BITS)) - 1  # a symbol's own limit

# Squared distances of the rings of each class of positions, nearest first: centres of squares,
# middles of horizontal edges, of vertical ones.
CLASSES = tuple((order.row, order.column) for order in PASSES[1:4])
RINGS = {
    (order.row, order.column): tuple(sorted({y * y + x * x for y, x in order.offsets}))
    for order in PASSES[1:4]
}


@dataclass(frozen=True, slots=True)
class Features:
    """What the symbols of some positions of a pass are predicted from.

    Attributes:
        own: (K, n) neighbours in the channel itself less the channel's mean, in symbols, in the
            order of `Pass.offsets`.
        live: (n,) liveliness of the earlier channels, in units of 2**-8 symbols.
        order: The pass.
        mean: The channel's mean, in symbols.
    """

    own: Integers
    live: Integers
    order: Pass
    mean: int

    def ring_sums(self) -> Integers:
        """Returns the (r, n) sums over each ring of neighbours."""
        distances = np.array([y * y + x * x for y, x in self.order.offsets])
        rings = RINGS[self.order.row, self.order.column]
        return np.stack([self.own[distances == ring].sum(axis=0) for ring in rings])

    def means(self, weights: tuple[int, ...]) -> Integers:
        """Returns (n,) predicted means in units of 2**-8 symbols."""
        sums = np.array(weights, np.int64) @ self.ring_sums()
        means = (sums << (FRACTION_BITS - MEAN_BITS)) + (self.mean << FRACTION_BITS)
        clipped: Integers = np.clip(means, -MAX_SCALE, MAX_SCALE)
        return clipped

    def near(self, means: Integers) -> Integers:
        """Returns (n,) mean distances of the near neighbours from `means`, in the same units."""
        num_near = self.order.num_near
        values = (self.own[:num_near] + self.mean) << FRACTION_BITS
        distances: Integers = np.abs(values - means).sum(axis=0) // num_near
        return distances


def features_of(
    plane: Integers, live: Integers, order: Pass, mean: int
) -> Iterator[tuple[range, Features]]:
    """Yields the features of a pass in blocks of whole rows; nothing for a pass without positions.

    Args:
        plane: (h, w), the channel as far as it is known.
        live: (h, w), `liveliness` of the earlier channels.
        order: The pass.
        mean: The channel's mean, in symbols.
    """
    around = Neighbourhood.of(plane, (), order)
    rows, columns = around.shape
    height = max(1, BLOCK // max(1, columns))
    for top in range(0, rows if columns else 0, height):
        block = range(top, min(top + height, rows))
        lively = order.view(live)[block.start : block.stop].ravel()
        yield block, Features(around.gather(block) - mean, lively, order, mean)


def liveliness(activity: Integers, num_earlier: int) -> Integers:
    """Returns (h, w) mean distances in the earlier channels, in units of 2**-8 symbols.

    Args:
        activity: (h, w), sum of the `rim_distances` of those channels.
        num_earlier: How many there are.
    """
    return (activity << FRACTION_BITS) // max(1, 8 * num_earlier)


def rim_distances(plane: Integers) -> Integers:
    """Returns (h, w) sums of the distances of a channel's 8 neighbours from each place."""
    rows, columns = plane.shape
    padded = mirror(plane, 1)
    shifted = [padded[1 + y : 1 + y + rows, 1 + x : 1 + x + columns] for y, x in WINDOW[1:]]
    distances: Integers = np.abs(np.stack(shifted) - plane).sum(axis=0)
    return distances
