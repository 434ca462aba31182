"""Rate-aware quantisation: each symbol is chosen by its error and by the bits that it costs.

Of the two whole numbers around a value the one with the smaller `error**2 + trade * bits` is taken,
with the bits of the tables that the coder will use at that place (rate-distortion optimised
quantisation, Karczewicz et al., VCEG-AH21; a generalised dead zone). Choices are the encoder's own
business: decoding does not depend on how they were made.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.entropy.residuals import SYMBOL_LIMIT, entries
from codec.entropy.tables import RADIUS, Choice

_ESCAPE_BITS = 5.0  # of the number of digits, see `residuals`


@dataclass(frozen=True, slots=True)
class SymbolChooser:
    """Chooses symbols for values.

    Attributes:
        bits: Code length of each table entry.
        trade: Squared error, in squares of the step, that a bit may cost; 0 rounds.
    """

    bits: NDArray[np.float64]
    trade: float

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], trade: float) -> Self:
        """Takes the code lengths from tables of probabilities."""
        return cls(-np.log2(probabilities), trade)

    def choose(self, choice: Choice, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns a symbol for each value.

        Args:
            choice: Tables of these places.
            values: (n,) latents divided by the step, within the symbols' limit.
        """
        near = np.rint(values).astype(np.int64)
        if not self.trade:
            return near
        other = near + np.where(values > near, 1, -1)
        cost = (values - near) ** 2 + self.trade * self._bits(choice, near)
        other_cost = (values - other) ** 2 + self.trade * self._bits(choice, other)
        takes_other = (other_cost < cost) & (np.abs(other) < SYMBOL_LIMIT)
        return np.where(takes_other, other, near)

    def _bits(self, choice: Choice, symbols: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns code lengths without the low bits, which both candidates have alike."""
        differences, indices = entries(choice, symbols)
        excess = np.abs(differences) - RADIUS
        escapes = np.where(excess > 0, _ESCAPE_BITS + np.log2(np.maximum(excess, 1)), 0.0)
        lengths: NDArray[np.float64] = self.bits[choice.rows, indices] + escapes
        return lengths
