"""ContextCoder: integer latents to payload bytes and back, by a learned context model.

The same interface, tables, escapes and range coder as `SymbolCoder`; only what predicts a symbol
differs. Several images of one shape are coded together: each keeps its own bytes, which do not
depend on its company.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from codec.entropy.choosing import SymbolChooser
from codec.entropy.context_lattice import CONTEXT_PASSES, Number, Piece
from codec.entropy.context_network import LOG_BITS, ContextNetwork
from codec.entropy.payload import BitCounter, PayloadReader, PayloadWriter, probabilities
from codec.entropy.residuals import read_block, write_block
from codec.entropy.symbols import SymbolsError, check_shape, check_symbols
from codec.entropy.tables import Choice, Tables

Symbols = NDArray[np.int32]  # (C, h, w)
# Takes the choice for all images of a block, its channel and its pieces; returns (B, n) symbols.
BlockCode = Callable[[Choice, int, list[Piece]], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class ContextCoder:
    """Codes integer latents of a fixed number of channels, at any size and any quantiser step.

    Attributes:
        network: Predicts means and scales.
        tables: The frequency tables, shared by all channels and positions.
    """

    network: ContextNetwork
    tables: Tables
    _probabilities: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_probabilities", probabilities(self.tables.frequencies))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a coder from its safetensors file.

        Raises:
            TablesError: The file is missing, malformed or of another version.
        """
        from codec.entropy.context_storage import read_context_file

        return cls(*read_context_file(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the coder as a safetensors file of integers; equal coders give equal bytes."""
        from codec.entropy.context_storage import write_context_file

        write_context_file(path, self.network, self.tables)

    def encode(self, symbols: Symbols, step: int) -> bytes:
        """Return the payload of symbols; see `SymbolCoder.encode`."""
        return self.encode_batch([symbols], step)[0]

    def encode_batch(self, images: Sequence[Symbols], step: int) -> list[bytes]:
        """Return a payload for each of several images of one shape; see `encode`."""
        writers = [PayloadWriter(self._probabilities) for _ in images]
        self._write(writers, images, step)
        return [writer.finish(images[0].size) for writer in writers]

    def estimate_bits(self, symbols: Symbols, step: int) -> float:
        """Return the ideal code length of symbols in bits; arguments and errors are `encode`'s."""
        counter = BitCounter(self._probabilities)
        self._write([counter], [symbols], step)
        return counter.total

    def quantize(self, values: NDArray[np.float64], step: int, trade: float) -> Symbols:
        """Return symbols chosen by their error and their bits; see `SymbolCoder.quantize`."""
        check_shape(values.shape, step, self.network.num_channels)
        chooser = SymbolChooser.of(self._probabilities, trade)
        symbols = np.zeros((len(values), 1, *values.shape[1:]), np.int32)
        planes = values[:, None]

        def choose(choice: Choice, channel: int, pieces: list[Piece]) -> NDArray[np.int64]:
            return chooser.choose(choice, take(planes[channel], pieces)[0])[None]

        self.walk(symbols, step, choose)
        return symbols[:, 0]

    def decode(self, payload: bytes, shape: tuple[int, int, int], step: int) -> Symbols:
        """Return the symbols that `encode` made `payload` from; see `SymbolCoder.decode`."""
        return self.decode_batch([payload], shape, step)[0]

    def decode_batch(
        self, payloads: Sequence[bytes], shape: tuple[int, int, int], step: int
    ) -> list[Symbols]:
        """Return the symbols of several payloads of one shape and step; see `decode`."""
        check_shape(shape, step, self.network.num_channels)
        size = shape[0] * shape[1] * shape[2]
        readers = [PayloadReader(self._probabilities, payload, size) for payload in payloads]
        symbols = np.zeros((shape[0], len(payloads), *shape[1:]), np.int32)

        def read(choice: Choice, channel: int, pieces: list[Piece]) -> NDArray[np.int64]:
            del channel, pieces
            parts = choice.split(len(readers))
            return np.stack(
                [read_block(reader, part) for reader, part in zip(readers, parts, strict=True)]
            )

        self.walk(symbols, step, read)
        return list(np.ascontiguousarray(symbols.transpose(1, 0, 2, 3)))

    def walk(self, symbols: NDArray[np.int32], step: int, code: BlockCode) -> None:
        """Goes through all positions in coding order and fills `symbols` with what `code` returns.

        Encoder, decoder and the counting of tables come through here and see the same.

        Args:
            symbols: int32 (C, B, h, w), filled.
            step: In units of 2**-16.
            code: Codes a block of one channel.
        """
        network, scale = self.network, self.network.scale_for(step)
        values = np.zeros_like(symbols)
        for order in CONTEXT_PASSES:
            for pieces in order.blocks(symbols.shape[2:]):
                inputs = torch.from_numpy(order.gather(values, pieces, scale.log_step))
                hidden = network.start(order.kind, order.level, inputs)
                earlier = torch.empty((len(symbols), inputs.shape[1]), dtype=torch.int32)
                for channel in range(len(symbols)):
                    known = earlier[:channel]
                    means, logarithms = network.predict(order.kind, hidden, channel, known, scale)
                    choice = self.tables.choose_logarithmic(means, logarithms, LOG_BITS)
                    coded = code(choice, channel, pieces)
                    found = scale.values(coded, channel)
                    earlier[channel] = torch.from_numpy(found.reshape(-1))
                    _store(symbols[channel], coded, pieces)
                    _store(values[channel], found, pieces)

    def _write(
        self, writers: Sequence[PayloadWriter | BitCounter], images: Sequence[Symbols], step: int
    ) -> None:
        """Check symbols and write them to a payload or a bit counter each."""
        for symbols in images:
            check_symbols(symbols, step, self.network.num_channels)
            if symbols.shape != images[0].shape:
                raise SymbolsError(
                    f"symbols of shapes {images[0].shape} and {symbols.shape} were found where a "
                    "batch has one shape; code them one by one"
                )
        planes = np.stack(images, axis=1)

        def write(choice: Choice, channel: int, pieces: list[Piece]) -> NDArray[np.int64]:
            block = take(planes[channel], pieces).astype(np.int64)
            parts = choice.split(len(writers))
            for writer, part, row in zip(writers, parts, block, strict=True):
                write_block(writer, part, row)
            return block

        self.walk(np.zeros_like(planes), step, write)


def take(planes: NDArray[Number], pieces: list[Piece]) -> NDArray[Number]:
    """Returns the (B, n) values of a block's positions in planes (B, h, w)."""
    parts = [piece.view(planes).reshape(len(planes), piece.count) for piece in pieces]
    return np.concatenate(parts, axis=1)


def _store(planes: NDArray[np.int32], values: NDArray[np.integer], pieces: list[Piece]) -> None:
    """Writes the (B, n) values of a block to their places in planes (B, h, w)."""
    start = 0
    for piece in pieces:
        view = piece.view(planes)
        view[...] = values[:, start : start + piece.count].reshape(view.shape)
        start += piece.count
