"""Frequency tables from counted residuals, smoothed by a logistic distribution."""

import numpy as np
from numpy.typing import NDArray

from codec.entropy.payload import FREQUENCY_BITS
from codec.entropy.residuals import entries
from codec.entropy.tables import (
    ALPHABET,
    BINS_PER_OCTAVE,
    FRACTION_BITS,
    NUM_FRACTIONS,
    RADIUS,
    Choice,
    Tables,
    bin_thresholds,
)

Floats = NDArray[np.float64]

_PRIOR_COUNT = 32.0  # how many counted symbols the logistic distribution weighs as much as
_WIDTHS = 2.0 ** np.arange(
    -2, 2.01, 0.125
)  # tried for the distribution, relative to the bin's scale


class ResidualCounts:
    """Counts what symbols did against their predictions, and turns the counts into tables.

    Attributes:
        chooser: Tables of the right thresholds, which choose the rows that are counted.
    """

    def __init__(self) -> None:
        self._thresholds = bin_thresholds()
        num_rows = (len(self._thresholds) + 1) * NUM_FRACTIONS
        self._counts = np.zeros(num_rows * ALPHABET, np.int64)
        # `Tables.choose` needs thresholds only; the frequencies are what is being counted.
        flat = np.full((num_rows, ALPHABET), (1 << FREQUENCY_BITS) // ALPHABET, np.int32)
        flat[:, 0] += (1 << FREQUENCY_BITS) % ALPHABET
        self.chooser = Tables(self._thresholds, flat)

    def add(
        self, means: NDArray[np.int64], scales: NDArray[np.int64], symbols: NDArray[np.int64]
    ) -> None:
        """Count (n,) symbols against their predictions."""
        self.count(self.chooser.choose(means, scales), symbols)

    def count(self, choice: Choice, symbols: NDArray[np.int64]) -> None:
        """Count (n,) symbols for which `chooser` has chosen."""
        _, indices = entries(choice, symbols)
        self._counts += np.bincount(choice.rows * ALPHABET + indices, minlength=len(self._counts))

    def tables(self) -> Tables:
        """Return the tables of all that was counted; rows seen rarely follow the distribution."""
        counts = self._counts.reshape(-1, ALPHABET).astype(np.float64)
        # The scale in the middle of each bin, in symbols.
        middles = np.append(self._thresholds, self._thresholds[-1:] * 2.0 ** (1 / BINS_PER_OCTAVE))
        middles = middles * 2.0 ** (-0.5 / BINS_PER_OCTAVE) / (1 << FRACTION_BITS)
        rows = []
        for row, row_counts in enumerate(counts):
            scale = middles[row // NUM_FRACTIONS]
            mean = (row % NUM_FRACTIONS + 0.5) / (2 * NUM_FRACTIONS)
            prior = _best_logistic(row_counts, scale, mean)
            rows.append(_frequencies(row_counts + _PRIOR_COUNT * prior))
        return Tables(self._thresholds, np.array(rows, np.int32))


def _best_logistic(counts: Floats, scale: float, mean: float) -> Floats:
    """Return the discretised logistic distribution under which the counts are likeliest."""
    # A logistic distribution of width a has the expected absolute value 2 a log 2.
    widths = scale / (2 * np.log(2)) * _WIDTHS
    edges = np.arange(-RADIUS, RADIUS + 2) - 0.5 - mean
    below = 0.5 * (1 + np.tanh(edges / (2 * widths[:, None])))
    cumulative = np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
    candidates = np.diff(cumulative, axis=1) + 1e-6
    candidates /= candidates.sum(axis=1, keepdims=True)
    # One count at the width that the scale asks for keeps rows without counts there.
    middle = len(_WIDTHS) // 2
    best = np.argmax(np.log(candidates) @ (counts + candidates[middle]))
    chosen: Floats = candidates[best]
    return chosen


def _frequencies(weights: Floats) -> NDArray[np.int64]:
    """Round positive weights to frequencies of at least 1 with the sum 2**16."""
    free = (1 << FREQUENCY_BITS) - ALPHABET
    frequencies = 1 + np.floor(weights / weights.sum() * free).astype(np.int64)
    frequencies[np.argmax(frequencies)] += (1 << FREQUENCY_BITS) - frequencies.sum()
    rounded: NDArray[np.int64] = frequencies
    return rounded
