"""Indices of codes in a file that brings its own tables: plain bits, or by how often each occurs.

Counting pays where an image has many more indices than the codebook has codes in use. The tables,
the body of the chunk TABL, say for each codebook which of the two it is, and hold the frequencies
as classes of half an octave. TABLES.md beside this file specifies them.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import constriction
import numpy as np
from numpy.typing import NDArray

from codec.entropy.payload import FREQUENCY_BITS, PayloadError, PayloadReader, PayloadWriter
from codec.wire import AGAIN, InvalidTablesError, Reader, encode_varint

Indices = tuple[NDArray[np.int32], ...]  # (rows, columns) of each codebook, coarse to fine

WEIGHTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MAX_COUNTED = 1 << 14  # codes in one table of frequencies

_NO_TABLES = np.ones((1, 1))


@dataclass(frozen=True, slots=True)
class CodeCounts:
    """Which codes of a codebook occur in an image, and about how often.

    Attributes:
        used: (n,) ascending indices, 1 to `MAX_COUNTED` of them.
        classes: (n,) places in `WEIGHTS`.
    """

    used: NDArray[np.int64]
    classes: NDArray[np.int64]

    def frequencies(self) -> NDArray[np.int64]:
        """Returns (n,) frequencies of at least 1 with the sum 2**16."""
        weights = np.array(WEIGHTS, np.int64)[self.classes]
        free = (1 << FREQUENCY_BITS) - len(weights)
        frequencies: NDArray[np.int64] = 1 + weights * free // weights.sum()
        frequencies[np.argmax(frequencies)] += (1 << FREQUENCY_BITS) - frequencies.sum()
        return frequencies


def encode_indices(indices: Indices, sizes: Sequence[int]) -> tuple[bytes, bytes]:
    """Codes the indices of one image.

    Args:
        indices: One grid a codebook; each index is below the codebook's size.
        sizes: The numbers of codes, 2 to 2**16.

    Returns:
        The body of TABL and the payload.
    """
    tables = b""
    writer = _Writer(_NO_TABLES)
    for grid, size in zip(indices, sizes, strict=True):
        flat = grid.ravel().astype(np.int64)
        counts = _count(flat, size)
        if counts is None:
            tables += b"\x00"
            writer.write_bits(np.full(flat.size, _num_bits(size)), flat)
            continue
        tables += b"\x01" + _write_counts(counts, size)
        writer.write_by(counts.frequencies(), np.searchsorted(counts.used, flat))
    return tables, writer.finish(sum(grid.size for grid in indices))


def decode_indices(
    tables: bytes, payload: bytes, sizes: Sequence[int], shapes: Sequence[tuple[int, int]]
) -> Indices:
    """Returns the indices that `encode_indices` coded.

    Args:
        tables: The body of TABL.
        payload: The payload.
        sizes: The numbers of codes.
        shapes: (rows, columns) of each codebook's grid.

    Raises:
        InvalidTablesError: The tables are malformed.
        PayloadError: The payload is not one of these tables.
    """
    fields = Reader(io.BytesIO(tables), "TABL chunk", InvalidTablesError, InvalidTablesError)
    counts = [_read_codebook(fields, size) for size in sizes]
    if fields.position != len(tables):
        raise InvalidTablesError(
            f"the file's tables have {len(tables)} bytes; expected {fields.position}: {AGAIN}"
        )
    reader = _Reader(_NO_TABLES, payload, sum(rows * columns for rows, columns in shapes))
    grids = []
    for one, size, shape in zip(counts, sizes, shapes, strict=True):
        flat = _read_indices(reader, one, size, shape[0] * shape[1])
        grids.append(flat.astype(np.int32).reshape(shape))
    return tuple(grids)


class _Writer(PayloadWriter):
    def write_by(self, frequencies: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Writes places in one table of frequencies; nothing where there is only one place."""
        if len(frequencies) > 1:
            self._encoder.encode(places.astype(np.int32), _model(frequencies))


class _Reader(PayloadReader):
    def read_by(self, frequencies: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Reads what `_Writer.write_by` wrote."""
        if len(frequencies) == 1:
            return np.zeros(count, np.int64)
        return self._decode(_model(frequencies), count)


def _model(frequencies: NDArray[np.int64]) -> constriction.stream.model.Categorical:
    probabilities = frequencies.astype(np.float64) / (1 << FREQUENCY_BITS)
    return constriction.stream.model.Categorical(probabilities, perfect=False)


def _read_indices(
    reader: _Reader, counts: CodeCounts | None, size: int, count: int
) -> NDArray[np.int64]:
    if counts is not None:
        return counts.used[reader.read_by(counts.frequencies(), count)]
    flat = reader.read_bits(np.full(count, _num_bits(size)))
    if flat.max() >= size:
        raise PayloadError(
            f"the payload names code {flat.max()} of {size}, which no encoder writes; the file is "
            "damaged, get it anew"
        )
    return flat


def _num_bits(size: int) -> int:
    return (size - 1).bit_length()


def _count(flat: NDArray[np.int64], size: int) -> CodeCounts | None:
    """Returns the counts of (N,) indices, or None where plain bits take less."""
    used, counts = np.unique(flat, return_counts=True)
    if len(used) > MAX_COUNTED:
        return None
    logarithms = np.log2(counts / counts.max() * WEIGHTS[-1])
    distances = np.abs(logarithms[:, None] - np.log2(WEIGHTS))
    found = CodeCounts(used, np.argmin(distances, axis=1))
    bits = -counts @ np.log2(found.frequencies() / (1 << FREQUENCY_BITS))
    bits += 8 * len(_write_counts(found, size))
    return found if bits < flat.size * _num_bits(size) else None


def _write_counts(counts: CodeCounts, size: int) -> bytes:
    """Returns run lengths of codes out of use and in use in turn, then two classes a byte."""
    in_use = np.zeros(size, bool)
    in_use[counts.used] = True
    changes = np.flatnonzero(np.diff(in_use, prepend=False))
    runs = np.diff(changes, prepend=0, append=size)
    nibbles = np.pad(counts.classes, (0, len(counts.classes) % 2)).astype(np.uint8)
    packed = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
    return b"".join(map(encode_varint, runs.tolist())) + packed


def _read_codebook(fields: Reader, size: int) -> CodeCounts | None:
    kind = fields.take_byte("kind")
    if kind > 1:
        raise InvalidTablesError(
            f"the file's tables are of kind {kind}; this release knows 0 and 1: update latent-codec"
        )
    if kind == 0:
        return None
    used = np.concatenate([np.arange(start, stop) for start, stop in _read_runs(fields, size)])
    if len(used) > MAX_COUNTED:
        raise InvalidTablesError(
            f"the file's tables count {len(used)} codes; expected at most {MAX_COUNTED}: {AGAIN}"
        )
    packed = np.frombuffer(fields.take((len(used) + 1) // 2, "classes"), np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    if nibbles[len(used) :].any():
        raise InvalidTablesError(f"the file's tables do not end with zeros; {AGAIN}")
    return CodeCounts(used, nibbles[: len(used)].astype(np.int64))


def _read_runs(fields: Reader, size: int) -> Iterator[tuple[int, int]]:
    """Yields start and stop of the runs of codes in use, at least one."""
    end = fields.take_varint("runs")
    while True:
        start, end = end, end + fields.take_varint("runs")
        if not start < end <= size:
            raise InvalidTablesError(
                f"the file's tables name the codes {start} to {end} of {size}; {AGAIN}"
            )
        yield start, end
        if end == size:
            return
        unused = fields.take_varint("runs")
        if unused == 0:
            raise InvalidTablesError(f"the file's tables have an empty run of codes; {AGAIN}")
        end += unused
        if end == size:
            return
