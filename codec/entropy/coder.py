"""SymbolCoder: integer latents to payload bytes and back, by the tables of one checkpoint."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.entropy.context import MAX_CHANNELS, Predictor, scale_features
from codec.entropy.lattice import BLOCK, PASSES, Neighbourhood, mirror
from codec.entropy.payload import BitCounter, PayloadReader, PayloadWriter, probabilities
from codec.entropy.residuals import SYMBOL_LIMIT, read_block, write_block
from codec.entropy.storage import read_coder_file, write_coder_file
from codec.entropy.tables import Choice, Tables, TablesError
from codec.errors import LatentCodecError

MAX_STEP = (1 << 32) - 1

# Takes the choice of a block and where it lies (channel, pass, rows); returns the block's symbols.
_CodeBlock = Callable[[Choice, int, int, range], NDArray[np.int64]]


class SymbolsError(LatentCodecError):
    """Symbols that the coder cannot take: wrong type, shape or range."""


@dataclass(frozen=True, slots=True)
class SymbolCoder:
    """Codes integer latents of a fixed number of channels, at any size and any quantiser step.

    Attributes:
        predictors: For each channel one predictor a pass, in coding order.
        tables: The frequency tables, shared by all channels and passes.
    """

    predictors: tuple[tuple[Predictor, ...], ...]
    tables: Tables
    _probabilities: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.predictors) <= MAX_CHANNELS:
            raise TablesError(
                f"entropy tables for {len(self.predictors)} channels were found where 1 to "
                f"{MAX_CHANNELS} are possible; train with fewer latent channels"
            )
        object.__setattr__(self, "_probabilities", probabilities(self.tables.frequencies))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a coder from its safetensors file.

        Raises:
            TablesError: The file is missing, malformed or of another version.
        """
        return cls(*read_coder_file(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the coder as a safetensors file of integers; equal coders give equal bytes."""
        write_coder_file(path, self.predictors, self.tables)

    def encode(self, symbols: NDArray[np.int32], step: int) -> bytes:
        """Return the payload of symbols.

        Args:
            symbols: int32 (C, h, w), strictly between -2**20 and 2**20.
            step: Quantiser step in units of 2**-16, 1 to 2**32 - 1; `decode` needs it too.

        Raises:
            SymbolsError: Wrong type, shape, range or step.
        """
        writer = PayloadWriter(self._probabilities)
        self._write(writer, symbols, step)
        return writer.finish(symbols.size)

    def estimate_bits(self, symbols: NDArray[np.int32], step: int) -> float:
        """Return the ideal code length of symbols in bits; arguments and errors are `encode`'s."""
        counter = BitCounter(self._probabilities)
        self._write(counter, symbols, step)
        return counter.total

    def decode(self, payload: bytes, shape: tuple[int, int, int], step: int) -> NDArray[np.int32]:
        """Return the int32 (C, h, w) symbols that `encode` made `payload` from.

        Damaged bytes either raise or give other symbols in range, in bounded time and memory; a
        checksum beside the payload tells.

        Raises:
            SymbolsError: A shape or step that this coder cannot have written.
            PayloadError: The bytes are no payload of this coder.
        """
        self._check(shape, step)
        reader = PayloadReader(self._probabilities, payload, shape[0] * shape[1] * shape[2])
        planes = np.zeros(shape, np.int32)

        def read(choice: Choice, channel: int, index: int, rows: range) -> NDArray[np.int64]:
            del channel, index, rows
            return read_block(reader, choice)

        self._run(planes, step, read)
        return planes

    def _write(
        self, writer: PayloadWriter | BitCounter, symbols: NDArray[np.int32], step: int
    ) -> None:
        """Check symbols and write them to a payload or a bit counter."""
        if symbols.dtype != np.int32:
            raise SymbolsError(
                f"symbols of type {symbols.dtype} were found where int32 is expected; round the "
                "latents divided by the step and convert them"
            )
        self._check(symbols.shape, step)
        if symbols.max() >= SYMBOL_LIMIT or symbols.min() <= -SYMBOL_LIMIT:
            raise SymbolsError(
                f"symbols from {symbols.min()} to {symbols.max()} were found where they must lie "
                f"between -{SYMBOL_LIMIT} and {SYMBOL_LIMIT}; use a larger step"
            )

        def write(choice: Choice, channel: int, index: int, rows: range) -> NDArray[np.int64]:
            view = PASSES[index].view(symbols[channel])
            block = view[rows.start : rows.stop].astype(np.int64).ravel()
            write_block(writer, choice, block)
            return block

        self._run(np.zeros(symbols.shape, np.int32), step, write)

    def _check(self, shape: tuple[int, ...], step: int) -> None:
        """Refuse a shape or step that cannot be coded."""
        if len(shape) != 3 or shape[0] != len(self.predictors) or min(shape) < 1:
            raise SymbolsError(
                f"symbols of shape {tuple(shape)} were found where ({len(self.predictors)}, "
                "height, width) is expected; use the coder that belongs to these latents"
            )
        if not 1 <= step <= MAX_STEP:
            raise SymbolsError(
                f"a quantiser step of {step} / 65536 was found where 1 to {MAX_STEP} are possible"
            )

    def _run(self, planes: NDArray[np.int32], step: int, code_block: _CodeBlock) -> None:
        """Walk through all positions in coding order and fill `planes`, zeros at first.

        Encoder and decoder both come through here and see the same known symbols, zeros elsewhere.
        """
        earlier: tuple[NDArray[np.int64], ...] = ()
        for channel, predictors in enumerate(self.predictors):
            plane = np.zeros(planes.shape[1:], np.int64)
            for index, (order, predictor) in enumerate(zip(PASSES, predictors, strict=True)):
                around = Neighbourhood.of(plane, earlier, order)
                coded = []
                for rows in _blocks(around.shape):
                    gathered = around.gather(rows)
                    means = predictor.means(gathered, step)
                    scales = predictor.scales(scale_features(gathered, means, order), step)
                    choice = self.tables.choose(means, scales)
                    coded.append(code_block(choice, channel, index, rows))
                if coded:
                    order.view(plane)[...] = np.concatenate(coded).reshape(around.shape)
            planes[channel] = plane
            earlier += (mirror(plane, 1),)


def _blocks(shape: tuple[int, int]) -> Iterator[range]:
    """Cut the rows of a pass into blocks of about `BLOCK` positions; none for an empty pass."""
    rows, columns = shape
    if columns:
        height = max(1, BLOCK // columns)
        for top in range(0, rows, height):
            yield range(top, min(top + height, rows))
