"""Symbols of one block to table entries, low bits and escapes, and back.

The three parts are written one after another: the table entries of the whole block, then the low
bits of symbols with a wide scale, then for the escapes the number of their digits (5 bits) and
the digits.
"""

import numpy as np
from numpy.typing import NDArray

from codec.entropy.payload import BitCounter, PayloadError, PayloadReader, PayloadWriter
from codec.entropy.tables import RADIUS, Choice, bit_lengths

SYMBOL_LIMIT = 1 << 20  # symbols lie strictly between -2**20 and 2**20
_ESCAPE_ABOVE = 2 * RADIUS + 2
_CLASS_BITS = 5
_MAX_ESCAPE_DIGITS = 21  # a difference is below 2**21: symbol and mean are each below 2**20


def entries(
    choice: Choice, symbols: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the differences of symbols from their bases, and their entries in the tables."""
    differences = symbols >> choice.shifts
    differences -= choice.bases
    np.negative(differences, out=differences, where=choice.flips)
    indices = differences + (RADIUS + 1)
    np.maximum(indices, 0, out=indices)
    return differences, np.minimum(indices, _ESCAPE_ABOVE, out=indices)


def write_block(
    writer: PayloadWriter | BitCounter, choice: Choice, symbols: NDArray[np.int64]
) -> None:
    """Write (n,) symbols by the tables chosen for them."""
    write_entries(writer, choice, symbols, *entries(choice, symbols))


def write_entries(
    writer: PayloadWriter | BitCounter,
    choice: Choice,
    symbols: NDArray[np.int64],
    differences: NDArray[np.int64],
    indices: NDArray[np.int64],
) -> None:
    """Write (n,) symbols of which `entries` is known already."""
    writer.write_symbols(choice.rows, indices)
    (wide,) = choice.shifts.nonzero()
    if wide.size:
        shifts = choice.shifts[wide]
        writer.write_bits(shifts, symbols[wide] & ((1 << shifts) - 1))
    (escaped,) = ((indices == 0) | (indices == _ESCAPE_ABOVE)).nonzero()
    if escaped.size:
        excess = np.abs(differences[escaped]) - RADIUS  # from 1 on
        digits = bit_lengths(excess) - 1  # behind the leading one
        writer.write_bits(np.full(escaped.size, _CLASS_BITS), digits)
        some = np.flatnonzero(digits)
        if some.size:
            writer.write_bits(digits[some], excess[some] - (1 << digits[some]))


def read_block(reader: PayloadReader, choice: Choice) -> NDArray[np.int64]:
    """Read the (n,) symbols that `write_block` wrote with the same choice.

    Raises:
        PayloadError: The bytes are no payload, or name a symbol out of range.
    """
    indices = reader.read_symbols(choice.rows)
    differences = indices - (RADIUS + 1)
    (wide,) = choice.shifts.nonzero()
    low_bits = reader.read_bits(choice.shifts[wide]) if wide.size else None
    (escaped,) = ((indices == 0) | (indices == _ESCAPE_ABOVE)).nonzero()
    if escaped.size:
        excess = _read_escapes(reader, escaped.size)
        differences[escaped] = np.where(indices[escaped] == 0, -RADIUS - excess, RADIUS + excess)
    np.negative(differences, out=differences, where=choice.flips)
    symbols = choice.bases + differences
    symbols <<= choice.shifts
    if low_bits is not None:
        symbols[wide] += low_bits
    if symbols.size and np.abs(symbols).max() >= SYMBOL_LIMIT:
        raise PayloadError(
            "the payload names a symbol outside -2**20 .. 2**20, which no encoder writes; "
            "the file is damaged, get it anew"
        )
    return symbols


def _read_escapes(reader: PayloadReader, count: int) -> NDArray[np.int64]:
    """Read how far `count` differences lie beyond the tables, from 1 on."""
    digits = reader.read_bits(np.full(count, _CLASS_BITS))
    if digits.max() > _MAX_ESCAPE_DIGITS:
        raise PayloadError(
            f"the payload names a difference of {digits.max() + 1} binary digits where at most "
            f"{_MAX_ESCAPE_DIGITS + 1} can be; the file is damaged, get it anew"
        )
    excess = np.left_shift(1, digits)
    some = np.flatnonzero(digits)
    if some.size:
        excess[some] += reader.read_bits(digits[some])
    return excess
