"""The frequency tables of files that bring their own coder: logistic, made by integers alone.

A table that learned weights come with would be smaller by some ten thousandths, but would have to
be kept beside every reader for ever; these follow from the thresholds and a formula (TABLES.md
beside this file), and every machine computes the same ones.
"""

from functools import cache
from itertools import pairwise
from math import isqrt

import numpy as np

from codec.entropy.payload import FREQUENCY_BITS
from codec.entropy.tables import ALPHABET, NUM_FRACTIONS, RADIUS, Tables

# Scales where a further bin begins, four an octave, in units of 2**-8 symbols.
THRESHOLDS = (
    8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76,
    91, 108, 128, 152, 181, 215, 256, 304, 362, 431, 512, 609, 724, 861,
)  # fmt: skip
_OUTER = (7, 1024)  # what stands before the first and after the last threshold
_ONE = 1 << 64


@cache
def standard_tables() -> Tables:
    """Returns the tables; they take some 50 ms once a process."""
    rows = [
        _frequencies(isqrt((low * high) << 16), fraction)
        for low, high in pairwise((_OUTER[0], *THRESHOLDS, _OUTER[1]))
        for fraction in range(NUM_FRACTIONS)
    ]
    return Tables(np.array(THRESHOLDS, np.int64), np.array(rows, np.int32))


def _frequencies(scale: int, fraction: int) -> list[int]:
    """Returns one table, with the sum 2**16.

    Args:
        scale: Expected absolute difference from the mean, in units of 2**-16 symbols. A logistic
            distribution with it is F(x) = 1 / (1 + 2**(-2 x / scale)).
        fraction: The mean lies (2 fraction + 1) / 16 above the nearest integer.
    """
    sixteenths = [16 * edge - 9 - 2 * fraction for edge in range(-RADIUS, RADIUS + 2)]
    below = [_logistic((x << 29) // scale) for x in sixteenths]
    free = (1 << FREQUENCY_BITS) - ALPHABET
    masses = (after - before for before, after in pairwise((0, *below, _ONE)))
    frequencies = [1 + (mass * free >> 64) for mass in masses]
    frequencies[frequencies.index(max(frequencies))] += (1 << FREQUENCY_BITS) - sum(frequencies)
    return frequencies


def _logistic(exponent: int) -> int:
    """Returns 2**64 / (1 + 2**(-exponent / 2**16)), rounded down."""
    power = _power(abs(exponent))
    return (_ONE * _ONE if exponent >= 0 else power * _ONE) // (_ONE + power)


def _power(exponent: int) -> int:
    """Returns 2**(64 - exponent / 2**16) for an exponent from 0 on, from roots of 1 / 2."""
    power, root = _ONE, _ONE >> 1
    for bit in range(15, -1, -1):
        root = isqrt(root << 64)
        if exponent >> bit & 1:
            power = power * root >> 64
    return power >> (exponent >> 16)
