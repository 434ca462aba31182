"""SymbolCoder: integer latents to payload bytes and back, by the tables of one checkpoint."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.entropy.choosing import SymbolChooser
from codec.entropy.context import MAX_CHANNELS, Predictor, scale_features
from codec.entropy.lattice import BLOCK, PASSES, Neighbourhood, mirror
from codec.entropy.payload import BitCounter, PayloadReader, PayloadWriter, probabilities
from codec.entropy.residuals import read_block, write_block
from codec.entropy.storage import read_coder_file, write_coder_file
from codec.entropy.symbols import check_shape, check_symbols
from codec.entropy.tables import Choice, Tables, TablesError

# Takes the choice of a block and where it lies (channel, pass, rows); returns the block's symbols.
_CodeBlock = Callable[[Choice, int, int, range], NDArray[np.int64]]


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

    def encode_batch(self, images: Sequence[NDArray[np.int32]], step: int) -> list[bytes]:
        """Return the payload of each of several images of one shape."""
        return [self.encode(symbols, step) for symbols in images]

    def estimate_bits(self, symbols: NDArray[np.int32], step: int) -> float:
        """Return the ideal code length of symbols in bits; arguments and errors are `encode`'s."""
        counter = BitCounter(self._probabilities)
        self._write(counter, symbols, step)
        return counter.total

    def quantize(self, values: NDArray[np.float64], step: int, trade: float) -> NDArray[np.int32]:
        """Return symbols chosen by their error and by the bits that they cost.

        Args:
            values: (C, h, w) latents divided by the step, within the symbols' limit.
            step: As for `encode`.
            trade: Squared error, in squares of the step, that a bit may cost; 0 rounds.

        Raises:
            SymbolsError: Wrong shape or step.
        """
        check_shape(values.shape, step, len(self.predictors))
        chooser = SymbolChooser.of(self._probabilities, trade)
        symbols = np.zeros(values.shape, np.int32)

        def choose(choice: Choice, channel: int, index: int, rows: range) -> NDArray[np.int64]:
            view = PASSES[index].view(values[channel])
            return chooser.choose(choice, view[rows.start : rows.stop].ravel())

        self._run(symbols, step, choose)
        return symbols

    def decode(self, payload: bytes, shape: tuple[int, int, int], step: int) -> NDArray[np.int32]:
        """Return the int32 (C, h, w) symbols that `encode` made `payload` from.

        Damaged bytes either raise or give other symbols in range, in bounded time and memory; a
        checksum beside the payload tells.

        Raises:
            SymbolsError: A shape or step that this coder cannot have written.
            PayloadError: The bytes are no payload of this coder.
        """
        check_shape(shape, step, len(self.predictors))
        reader = PayloadReader(self._probabilities, payload, shape[0] * shape[1] * shape[2])
        planes = np.zeros(shape, np.int32)

        def read(choice: Choice, channel: int, index: int, rows: range) -> NDArray[np.int64]:
            del channel, index, rows
            return read_block(reader, choice)

        self._run(planes, step, read)
        return planes

    def decode_batch(
        self, payloads: Sequence[bytes], shape: tuple[int, int, int], step: int
    ) -> list[NDArray[np.int32]]:
        """Return the symbols of several payloads of one shape and step; see `decode`."""
        return [self.decode(payload, shape, step) for payload in payloads]

    def _write(
        self, writer: PayloadWriter | BitCounter, symbols: NDArray[np.int32], step: int
    ) -> None:
        """Check symbols and write them to a payload or a bit counter."""
        check_symbols(symbols, step, len(self.predictors))

        def write(choice: Choice, channel: int, index: int, rows: range) -> NDArray[np.int64]:
            view = PASSES[index].view(symbols[channel])
            block = view[rows.start : rows.stop].astype(np.int64).ravel()
            write_block(writer, choice, block)
            return block

        self._run(np.zeros(symbols.shape, np.int32), step, write)

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
