"""Integer frequency tables and the rule that picks one for a predicted mean and scale.

A table is a distribution of the difference between a symbol and its predicted mean. It is picked by
the predicted scale (log-spaced thresholds) and by how far the mean lies from the nearest integer,
which matters where the scale is small. Scales beyond the last threshold code `symbol >> shift` by
the same tables and the low bits as they are, so a finite set of tables serves every quantiser
step.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from codec.entropy.payload import FREQUENCY_BITS
from codec.errors import LatentCodecError

FRACTION_BITS = 8  # of predicted means and scales, in symbol units
WIDE_BITS = FRACTION_BITS + 2  # scales from 4.0 on are halved until they are below
NUM_FRACTIONS = (
    4  # classes of the mean's distance from the nearest integer: 0, 1/8, 2/8, 3/8 .. 1/2
)
RADIUS = 24  # differences that have an entry of their own; one more at each end is the escape
ALPHABET = 2 * RADIUS + 3
FIRST_THRESHOLD_BITS = 3  # 2**3 / 2**8 symbols: below, almost every symbol equals its prediction
BINS_PER_OCTAVE = 4
MAX_SHIFT = 18  # low bits; symbols have 20 and their scale at most as many
_OCTAVE_BITS = 2  # of BINS_PER_OCTAVE
_HALF = 1 << (FRACTION_BITS - 1)
_FRACTION_SHIFT = FRACTION_BITS - 1 - 2  # of NUM_FRACTIONS classes in half a symbol
_LOW_BITS_MEANS = ((1 << np.arange(64 - FRACTION_BITS)) - 1) << (FRACTION_BITS - 1)

Index = int | slice | tuple[int | slice, ...]


class TablesError(LatentCodecError):
    """Entropy tables that are malformed, or that belong to other latents."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What codes a set of symbols; every field has their shape, int64 or bool.

    Attributes:
        rows: Table of each symbol.
        shifts: Low bits coded as they are.
        bases: The mean of `symbol >> shift`, rounded to the nearest integer.
        flips: Whether the mean lies below its base: then the difference changes its sign.
    """

    rows: NDArray[np.int64]
    shifts: NDArray[np.int64]
    bases: NDArray[np.int64]
    flips: NDArray[np.bool_]

    def part(self, index: Index) -> "Choice":
        """Returns the choice for some of the symbols."""
        return Choice(self.rows[index], self.shifts[index], self.bases[index], self.flips[index])

    def flat(self) -> "Choice":
        """Returns the choice with all symbols in one row."""
        return Choice(
            self.rows.ravel(), self.shifts.ravel(), self.bases.ravel(), self.flips.ravel()
        )


@dataclass(frozen=True, slots=True)
class Tables:
    """Frequency tables.

    Attributes:
        thresholds: (B - 1,) ascending scales where a further bin begins, in units of 2**-8.
        frequencies: (B * NUM_FRACTIONS, ALPHABET) positive, each row with the sum 2**16; rows of
            one scale bin lie together. Entry 0 is the escape below, 1 .. ALPHABET - 2 are the
            differences -RADIUS .. RADIUS, and the last is the escape above.
    """

    thresholds: NDArray[np.int64]
    frequencies: NDArray[np.int32]

    def __post_init__(self) -> None:
        expected = ((len(self.thresholds) + 1) * NUM_FRACTIONS, ALPHABET)
        if self.frequencies.shape != expected:
            raise TablesError(
                f"frequency tables of shape {self.frequencies.shape} were found where "
                f"{len(self.thresholds)} thresholds ask for {expected}; export the model again"
            )
        totals = self.frequencies.sum(axis=1, dtype=np.int64)
        if self.frequencies.min() < 1 or (totals != 1 << FREQUENCY_BITS).any():
            raise TablesError(
                "frequency tables were found with an entry below 1 or a sum other than 2**16; "
                "export the model again"
            )
        if (np.diff(self.thresholds) <= 0).any():
            raise TablesError(
                "scale thresholds were found that do not ascend; export the model again"
            )

    def choose(self, means: NDArray[np.int64], scales: NDArray[np.int64]) -> Choice:
        """Pick the tables for predicted means and scales, both (n,) in units of 2**-8 symbols."""
        shifts = bit_lengths(scales >> WIDE_BITS)
        bins = np.searchsorted(self.thresholds, scales >> shifts, side="right")
        return _choice(means, bins, shifts)

    def choose_logarithmic(
        self, means: NDArray[np.int64], logarithms: NDArray[np.int64], log_bits: int
    ) -> Choice:
        """Pick the tables where scales are given by their binary logarithms.

        Args:
            means: (n,) in units of 2**-8 symbols.
            logarithms: (n,) of the scales in symbols, in units of 2**-log_bits.
            log_bits: At least 2. The thresholds must be those of `bin_thresholds`.
        """
        shifts, bins = _logarithmic_bins(log_bits, len(self.thresholds))
        places = logarithms + _LOWEST_LOGARITHM
        np.maximum(places, 0, out=places)
        np.minimum(places, len(bins) - 1, out=places)
        return _choice(means, bins.take(places), shifts.take(places))


_LOWEST_LOGARITHM = 1 << 10  # of what is looked up; far below all thresholds


@cache
def _logarithmic_bins(log_bits: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return low bits and bins of scales with the logarithms -2**10, .. in units of 2**-log_bits.

    It ends where neither changes any more.
    """
    one = 1 << log_bits
    logarithms = np.arange(-_LOWEST_LOGARITHM, (MAX_SHIFT + WIDE_BITS) * one)
    wide = logarithms - (WIDE_BITS - FRACTION_BITS) * one
    shifts = np.minimum(np.maximum((wide >> log_bits) + 1, 0), MAX_SHIFT)
    inside = logarithms - shifts * one + (FRACTION_BITS - FIRST_THRESHOLD_BITS) * one
    bins = (inside >> (log_bits - _OCTAVE_BITS)) + 1
    return shifts, np.minimum(np.maximum(bins, 0), last)


def bin_thresholds() -> NDArray[np.int64]:
    """Return thresholds from 2**-5 to 4 symbols, `BINS_PER_OCTAVE` each time that they double."""
    num = (WIDE_BITS - FIRST_THRESHOLD_BITS) * BINS_PER_OCTAVE
    exponents = FIRST_THRESHOLD_BITS + np.arange(num) / BINS_PER_OCTAVE
    return np.rint(2.0**exponents).astype(np.int64)


def _choice(means: NDArray[np.int64], bins: NDArray[np.int64], shifts: NDArray[np.int64]) -> Choice:
    """Return the choice for means in units of 2**-8 symbols, scale bins and low bits."""
    # The mean of `symbol >> shift`: the low bits take (2**shift - 1) / 2 with them.
    means = means - _LOW_BITS_MEANS.take(shifts)
    means >>= shifts
    bases = means + _HALF
    bases >>= FRACTION_BITS
    distances = means - (bases << FRACTION_BITS)
    flips = distances < 0
    np.abs(distances, out=distances)
    rows = distances >> _FRACTION_SHIFT
    np.minimum(rows, NUM_FRACTIONS - 1, out=rows)
    rows += bins * NUM_FRACTIONS
    return Choice(rows, shifts, bases, flips)


def bit_lengths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of binary digits of each value, 0 for 0; values in 0 .. 2**52."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)  # exact: they fit a float64
