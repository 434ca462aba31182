"""The payload: table symbols and plain bits in one range-coded byte string (constriction's queue).

Everything that decides how a symbol is coded is an integer. Frequencies reach constriction as
float64 numbers `frequency / 2**16`, which are exact, and `perfect=False` turns them back into
fixed point by a rule that is exact in float64: the left edge of symbol i is `(F_i * (2**24 - n)
>> 16) + i` for the sum F_i of the frequencies before it and an alphabet of n (float32 rounds
differently and gives other words).

The bytes are the big-endian code number, cut to the fewest bytes that still name it; the decoder
reads zeros behind the end. FORMAT.md beside this file writes the whole format down.
"""

import constriction
import numpy as np
from numpy.typing import NDArray

from codec.errors import LatentCodecError

FREQUENCY_BITS = 16

_queue = constriction.stream.queue
_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_UNIFORM = constriction.stream.model.Uniform()


class PayloadError(LatentCodecError):
    """A payload that cannot be the encoding of any symbols of the shape it is said to hold."""


def probabilities(frequencies: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return `frequencies / 2**16`, exactly; the form in which constriction takes tables."""
    return frequencies.astype(np.float64) / (1 << FREQUENCY_BITS)


def min_payload_bytes(num_symbols: int) -> int:
    """Return the fewest bytes that a payload of so many symbols has.

    It bounds what a few bytes can claim to hold. An encoder pads with zeros up to it; only blank
    images come near it.
    """
    return num_symbols >> 10


class PayloadWriter:
    """Collects table symbols and plain bits; `finish` returns the bytes."""

    def __init__(self, tables: NDArray[np.float64]) -> None:
        self._tables = tables
        self._encoder = _queue.RangeEncoder()

    def write_symbols(self, rows: NDArray[np.int64], indices: NDArray[np.int64]) -> None:
        """Write one index per table row; both of shape (n,)."""
        tables = self._tables.take(rows, axis=0)
        self._encoder.encode(indices.astype(np.int32), _CATEGORICAL, tables)

    def write_bits(self, num_bits: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """Write fields of 1 to 23 bits as they are; both of shape (n,).

        23, because constriction's uniform model takes sizes below 2**24.
        """
        sizes = np.left_shift(1, num_bits).astype(np.int32)
        self._encoder.encode(values.astype(np.int32), _UNIFORM, sizes)

    def finish(self, num_symbols: int) -> bytes:
        """Return the payload of what has been written, `num_symbols` table symbols in all."""
        payload = self._shortest()
        return payload.ljust(min_payload_bytes(num_symbols), b"\0")

    def _shortest(self) -> bytes:
        """Return the fewest bytes that, zeros following, lie in the coder's final interval."""
        sealed = self._encoder.get_compressed().astype(">u4").tobytes()
        num_words, (lower, width) = self._encoder.pos()
        # The interval is head * 2**64 + lower .. + width - 1. The sealed bytes lie in it, and
        # hold head + 1 where they could only do so by a carry out of the last 64 bits.
        size = 4 * num_words
        carried = int.from_bytes(sealed[size:].ljust(8, b"\0"), "big") < lower
        head = int.from_bytes(sealed[:size], "big") - carried
        for shift in range(64, -1, -8):
            tail = -(-lower >> shift) << shift  # the least number from `lower` on that is so short
            if tail < lower + width:
                number: bytes = ((head << 64) + tail).to_bytes(size + 8, "big")
                return number.rstrip(b"\0")
        raise AssertionError("a range coder's interval holds at least one 64-bit number")


class PayloadReader:
    """Reads what a `PayloadWriter` wrote, in the same order, with the same rows and sizes."""

    def __init__(self, tables: NDArray[np.float64], payload: bytes, num_symbols: int) -> None:
        if len(payload) < min_payload_bytes(num_symbols):
            raise PayloadError(
                f"a payload of {len(payload)} bytes was found for {num_symbols} symbols, "
                f"which take at least {min_payload_bytes(num_symbols)}; the file is damaged, "
                "get it anew"
            )
        self._tables = tables
        padded = payload + bytes(-len(payload) % 4)
        self._decoder = _queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))

    def read_symbols(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read one index per table row.

        Raises:
            PayloadError: The bytes were not written by a range coder with these tables.
        """
        return self._decode(_CATEGORICAL, self._tables.take(rows, axis=0))

    def read_bits(self, num_bits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read fields of 1 to 23 bits.

        Raises:
            PayloadError: The bytes were not written by a range coder with these sizes.
        """
        return self._decode(_UNIFORM, np.left_shift(1, num_bits).astype(np.int32))

    def _decode(
        self, family: object, parameters: NDArray[np.float64] | NDArray[np.int32] | int
    ) -> NDArray[np.int64]:
        try:
            decoded = self._decoder.decode(family, parameters)
        except AssertionError as error:  # what constriction raises for words outside every interval
            raise PayloadError(
                "the payload holds bytes that no encoder writes; the file is damaged, get it anew"
            ) from error
        return np.asarray(decoded, dtype=np.int64)


class BitCounter:
    """A `PayloadWriter`'s twin that only adds up the ideal code length, in bits."""

    def __init__(self, tables: NDArray[np.float64]) -> None:
        self._bits = -np.log2(tables)
        self.total = 0.0

    def write_symbols(self, rows: NDArray[np.int64], indices: NDArray[np.int64]) -> None:
        """Count one index per table row; both of shape (n,)."""
        self.total += float(self._bits[rows, indices].sum())

    def write_bits(self, num_bits: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """Count fields of plain bits."""
        del values
        self.total += float(num_bits.sum())
