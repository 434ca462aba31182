"""IndexCoder: indices of codes to payload bytes and back, by a learned model of what is around.

Grids of codebooks come coarse to fine; a finer one sees the next coarser one, which has half of its
rows and columns. Inside a grid positions come in the order of `codec.entropy.context_lattice`: all
positions of a block take their first decision (see `codec.entropy.index_tree`), then all their
second, down to the codes. FORMAT-INDICES.md beside this file specifies the payload.

Legend: B images, E values of a code.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.entropy.context_order import coding_order
from codec.entropy.index_network import NUM_TABLES, CodebookWeights
from codec.entropy.index_storage import read_index_file, write_index_file
from codec.entropy.index_tables import Indices
from codec.entropy.index_walk import Decisions, GridWalk, Shape, Step
from codec.entropy.payload import (
    FREQUENCY_BITS,
    BitCounter,
    PayloadReader,
    PayloadWriter,
    probabilities,
)
from codec.entropy.symbols import SymbolsError
from codec.entropy.tables import TablesError


@dataclass(frozen=True, slots=True)
class IndexCoder:
    """Codes the indices of fixed codebooks, at any size.

    Attributes:
        codebooks: Coarse to fine.
        frequencies: int64 (NUM_TABLES,) of a yes by log odds, 1 to 2**16 - 1.
    """

    codebooks: tuple[CodebookWeights, ...]
    frequencies: NDArray[np.int64]
    _probabilities: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _leaves: tuple[NDArray[np.int64], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole = 1 << FREQUENCY_BITS
        if (
            self.frequencies.shape != (NUM_TABLES,)
            or self.frequencies.min() < 1
            or self.frequencies.max() >= whole
        ):
            raise TablesError(
                f"frequencies of shape {self.frequencies.shape} were found where {NUM_TABLES} from "
                f"1 to {whole - 1} are expected; export the model again"
            )
        pairs = np.stack([whole - self.frequencies, self.frequencies], axis=1)
        object.__setattr__(self, "_probabilities", probabilities(pairs.astype(np.int32)))
        leaves = tuple(np.argsort(codebook.codes) for codebook in self.codebooks)
        object.__setattr__(self, "_leaves", leaves)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a coder from its safetensors file.

        Raises:
            TablesError: The file is missing, malformed or of another version.
        """
        return cls(*read_index_file(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the coder as a safetensors file of integers; equal coders give equal bytes."""
        write_index_file(path, self.codebooks, self.frequencies)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each codebook, coarse to fine."""
        return tuple(codebook.num_codes for codebook in self.codebooks)

    def encode(self, indices: Indices) -> bytes:
        """Returns the payload of int32 (rows, columns) indices of each codebook.

        Raises:
            SymbolsError: They are of another type, or of a size or range that is not possible.
        """
        return self.encode_batch([indices])[0]

    def encode_batch(self, images: Sequence[Indices]) -> list[bytes]:
        """Returns a payload for each of several images of one shape; see `encode`."""
        writers = [PayloadWriter(self._probabilities) for _ in images]
        self._write(writers, images)
        return [writer.finish(sum(grid.size for grid in images[0])) for writer in writers]

    def estimate_bits(self, indices: Indices) -> float:
        """Returns the ideal code length in bits; argument and errors are `encode`'s."""
        counter = BitCounter(self._probabilities)
        self._write([counter], [indices])
        return counter.total

    def decode(self, payload: bytes, shapes: Sequence[Shape]) -> Indices:
        """Returns the indices that `encode` made `payload` from.

        Args:
            payload: The bytes.
            shapes: (rows, columns) of each codebook's grid.

        Returns:
            int32 indices of each codebook.

        Raises:
            SymbolsError: Codes of such shapes are not possible.
            PayloadError: The payload cannot be an encoding of so many indices.
        """
        return self.decode_batch([payload], shapes)[0]

    def decode_batch(self, payloads: Sequence[bytes], shapes: Sequence[Shape]) -> list[Indices]:
        """Returns the indices of several payloads of one shape; see `decode`."""
        count = sum(rows * columns for rows, columns in self._checked(shapes))
        readers = [PayloadReader(self._probabilities, payload, count) for payload in payloads]

        def read(step: Step) -> NDArray[np.bool_]:
            parts = [
                reader.read_symbols(step.tables[part])
                for reader, part in zip(readers, step.images(), strict=True)
            ]
            return np.concatenate(parts).astype(bool)

        grids = self.walk(shapes, len(payloads), read)
        return [tuple(grid[image] for grid in grids) for image in range(len(payloads))]

    def walk(
        self, shapes: Sequence[Shape], num_images: int, decide: Decisions
    ) -> list[NDArray[np.int32]]:
        """Goes through all decisions in coding order; encoder, decoder and counting come here.

        Args:
            shapes: Of the grids.
            num_images: B.
            decide: Says which of a step's decisions are a yes.

        Returns:
            int32 (B, rows, columns) indices that the decisions led to, of each codebook.
        """
        grids: list[NDArray[np.int32]] = []
        coarse: NDArray[np.int32] | None = None  # (E, B, rows * columns), row by row
        for number, (codebook, shape) in enumerate(zip(self.codebooks, shapes, strict=True)):
            order = coding_order(shape)
            leaves = GridWalk(number, codebook, order, num_images, coarse).run(decide)
            in_rows = leaves[:, order.places]
            coarse = codebook.values.take(in_rows, axis=1)
            grids.append(codebook.codes[in_rows].astype(np.int32).reshape(num_images, *shape))
        return grids

    def leaves_in_order(self, images: Sequence[Indices]) -> list[NDArray[np.int64]]:
        """Returns the (B, rows * columns) leaves of each codebook's codes, in coding order.

        Raises:
            SymbolsError: As for `encode`.
        """
        shapes = [grid.shape for grid in images[0]]
        self._checked(shapes)
        for image in images:
            self._check_grids(image, shapes)
        return [
            leaves[np.stack([image[number].ravel() for image in images])][:, order.positions]
            for number, (leaves, order) in enumerate(
                zip(self._leaves, map(coding_order, shapes), strict=True)
            )
        ]

    def _write(
        self, writers: Sequence[PayloadWriter | BitCounter], images: Sequence[Indices]
    ) -> None:
        """Checks indices and writes them to a payload or a bit counter each."""
        known = self.leaves_in_order(images)

        def write(step: Step) -> NDArray[np.bool_]:
            goes_right = step.answers(known)
            bits = goes_right.astype(np.int64)
            for writer, part in zip(writers, step.images(), strict=True):
                writer.write_symbols(step.tables[part], bits[part])
            return goes_right

        self.walk([grid.shape for grid in images[0]], len(images), write)

    def _checked(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[Shape]:
        """Refuses shapes of grids that do not belong together."""
        first = tuple(shapes[0]) if shapes else ()
        expected = [tuple(side << level for side in first) for level in range(len(self.codebooks))]
        if len(first) != 2 or min(first) < 1 or list(map(tuple, shapes)) != expected:
            raise SymbolsError(
                f"indices of shapes {[tuple(shape) for shape in shapes]} were found where "
                f"{len(self.codebooks)} grids of rows and columns are expected, each with twice "
                "those of the one before; use the coder that belongs to these codes"
            )
        return [(shape[0], shape[1]) for shape in shapes]

    def _check_grids(self, image: Indices, shapes: Sequence[tuple[int, ...]]) -> None:
        """Refuses indices of another shape, type or range."""
        if [grid.shape for grid in image] != list(shapes):
            raise SymbolsError(
                f"indices of shapes {[grid.shape for grid in image]} and {list(shapes)} were found "
                "where a batch has one shape; code them one by one"
            )
        for grid, size in zip(image, self.codebook_sizes, strict=True):
            if grid.dtype != np.int32 or grid.min() < 0 or grid.max() >= size:
                raise SymbolsError(
                    f"indices of type {grid.dtype} from {grid.min()} to {grid.max()} were found "
                    f"where int32 from 0 to {size - 1} is expected; use the coder that belongs to "
                    "these codes"
                )
