"""ContextCoder: integer latents to payload bytes and back, by a learned context model.

The same interface, tables, escapes and range coder as `SymbolCoder`; only what predicts a symbol
differs. Several images of one shape are coded together: each keeps its own bytes, which do not
depend on its company.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.entropy.choosing import SymbolChooser
from codec.entropy.context_network import ContextNetwork
from codec.entropy.context_order import Block, CodingOrder, coding_order
from codec.entropy.context_weights import LOG_BITS
from codec.entropy.payload import BitCounter, PayloadReader, PayloadWriter, probabilities
from codec.entropy.residuals import entries, read_block, write_entries
from codec.entropy.symbols import SymbolsError, check_shape, check_symbols
from codec.entropy.tables import Choice, Tables

Item = TypeVar("Item")
Number = TypeVar("Number", np.int32, np.float64)
Symbols = NDArray[np.int32]  # (C, h, w)
# Takes the choice (n * B,) for a block of one channel of all images, the images of a position side
# by side, then the channel and the block's places in coding order; returns the (n, B) symbols.
BlockCode = Callable[[Choice, int, slice], NDArray[np.int64]]

_TOGETHER = 1 << 12  # positions of a pass that stay in a processor's cache


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
        for symbols in images:
            self._check(symbols, step, images[0].shape)
        payloads = []
        for group in _groups(images, images[0][0].size):
            writers = [PayloadWriter(self._probabilities) for _ in group]
            self._write(writers, group, step)
            payloads += [writer.finish(images[0].size) for writer in writers]
        return payloads

    def estimate_bits(self, symbols: Symbols, step: int) -> float:
        """Return the ideal code length of symbols in bits; arguments and errors are `encode`'s."""
        self._check(symbols, step, symbols.shape)
        counter = BitCounter(self._probabilities)
        self._write([counter], [symbols], step)
        return counter.total

    def quantize(self, values: NDArray[np.float64], step: int, trade: float) -> Symbols:
        """Return symbols chosen by their error and their bits; see `SymbolCoder.quantize`."""
        check_shape(values.shape, step, self.network.num_channels)
        chooser = SymbolChooser.of(self._probabilities, trade)
        order = coding_order((values.shape[1], values.shape[2]))
        planes = _in_order([values], order)

        def choose(choice: Choice, channel: int, places: slice) -> NDArray[np.int64]:
            return chooser.choose(choice, planes[channel, places, 0])[:, None]

        return _as_images(self._walk(order, 1, step, choose), order)[0]

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
        order = coding_order(shape[1:])  # readers first: they refuse what is too short for it
        images: list[Symbols] = []
        for group in _groups(readers, shape[1] * shape[2]):
            images += _as_images(self._walk(order, len(group), step, partial(_read, group)), order)
        return images

    def choices(
        self, images: Sequence[Symbols], step: int
    ) -> Iterator[tuple[Choice, NDArray[np.int64]]]:
        """Yields what codes each block of images, and their symbols there.

        All symbols are known, so all channels of a block are predicted at once.

        Args:
            images: int32 (C, h, w) each, of one shape.
            step: In units of 2**-16.

        Yields:
            The choice and the symbols (C, n, B) of a block, in coding order.
        """
        order = coding_order(images[0].shape[1:])
        planes = _in_order(images, order).astype(np.int64)
        scale = self.network.scale_for(step)
        values = np.zeros((len(planes), planes.shape[1] + 1, planes.shape[2]))
        values[:, :-1] = scale.values(planes)
        for block in order.blocks():
            inputs = _inputs(values, block, scale.log_step)
            known = _view(values, block)[:-1]
            means, logarithms = self.network.predict_all(
                block.kind, block.level, inputs, known, scale
            )
            symbols = planes[:, block.places]
            choice = self.tables.choose_logarithmic(
                means.reshape(symbols.shape), logarithms.reshape(symbols.shape), LOG_BITS
            )
            yield choice, symbols

    def _walk(
        self, order: CodingOrder, num_images: int, step: int, code: BlockCode
    ) -> NDArray[np.int64]:
        """Goes through all positions in coding order and returns what `code` gave for them.

        A channel is predicted from what `code` returned for the ones before it. The choices are
        those that `choices` yields.

        Args:
            order: Of the latent grid.
            num_images: B.
            step: In units of 2**-16.
            code: Codes a block of one channel.

        Returns:
            int64 (C, h * w, B), in coding order.
        """
        network, scale = self.network, self.network.scale_for(step)
        symbols = np.zeros((network.num_channels, len(order.positions), num_images), np.int64)
        values = np.zeros((len(symbols), symbols.shape[1] + 1, num_images))
        for block in order.blocks():
            hidden = network.start(block.kind, block.level, _inputs(values, block, scale.log_step))
            known = _view(values, block)
            for channel in range(len(symbols)):
                means, logarithms = network.predict(
                    block.kind, hidden, channel, known[:channel], scale
                )
                choice = self.tables.choose_logarithmic(means, logarithms, LOG_BITS)
                coded = code(choice, channel, block.places)
                symbols[channel, block.places] = coded
                values[channel, block.places] = scale.values(coded[None], channel)[0]
        return symbols

    def _write(
        self, writers: Sequence[PayloadWriter | BitCounter], images: Sequence[Symbols], step: int
    ) -> None:
        """Write symbols to a payload or a bit counter each."""
        for choice, symbols in self.choices(images, step):
            differences, indices = entries(choice, symbols)
            for image, writer in enumerate(writers):
                for channel in range(len(symbols)):
                    part = (channel, slice(None), image)
                    write_entries(
                        writer, choice.part(part), symbols[part], differences[part], indices[part]
                    )

    def _check(self, symbols: Symbols, step: int, shape: tuple[int, ...]) -> None:
        check_symbols(symbols, step, self.network.num_channels)
        if symbols.shape != shape:
            raise SymbolsError(
                f"symbols of shapes {shape} and {symbols.shape} were found where a "
                "batch has one shape; code them one by one"
            )


def _read(
    readers: Sequence[PayloadReader], choice: Choice, channel: int, places: slice
) -> NDArray[np.int64]:
    """Reads one channel of a block, (n, B), from the payload of each image."""
    del channel, places
    if len(readers) == 1:
        return read_block(readers[0], choice)[:, None]
    parts = [
        read_block(reader, choice.part(slice(image, None, len(readers))))
        for image, reader in enumerate(readers)
    ]
    return np.stack(parts, axis=1)


def _groups(items: Sequence[Item], num_positions: int) -> Iterator[Sequence[Item]]:
    """Cuts a batch into parts whose largest pass, half of all positions, stays in the cache."""
    size = max(1, 2 * _TOGETHER // num_positions)
    return (items[start : start + size] for start in range(0, len(items), size))


def _inputs(values: NDArray[np.float64], block: Block, log_step: int) -> Tensor:
    """Returns what the network looks at, float64 (C * K + 1, n * B).

    Args:
        values: float64 (C, h * w + 1, B), in coding order, with a zero at the end.
        block: Of positions.
        log_step: Of the quantiser step.
    """
    neighbours, count = block.neighbours.shape
    channels, _, images = values.shape
    inputs = np.empty((channels * neighbours + 1, count * images))
    around = inputs[:-1].reshape(channels, neighbours, count, images)
    np.take(values, block.neighbours, axis=1, out=around, mode="clip")  # "raise" would copy twice
    inputs[-1] = log_step
    return torch.from_numpy(inputs)


def _view(values: NDArray[np.float64], block: Block) -> Tensor:
    """Returns the block's own values, (C, n * B), as a view of what `_inputs` takes."""
    images = values.shape[2]
    start, stop = block.places.start * images, block.places.stop * images
    return torch.from_numpy(values).flatten(1)[:, start:stop]


def _in_order(images: Sequence[NDArray[Number]], order: CodingOrder) -> NDArray[Number]:
    """Returns images (C, h, w) as one array (C, h * w, B) in coding order."""
    planes = np.stack([image.reshape(len(image), -1) for image in images], axis=2)
    return planes.take(order.positions, axis=1)


def _as_images(planes: NDArray[np.int64], order: CodingOrder) -> list[Symbols]:
    """Returns what `_in_order` took apart."""
    rows = planes.take(order.places, axis=1).astype(np.int32)
    shape = (len(planes), *order.shape)
    return [np.ascontiguousarray(rows[..., image]).reshape(shape) for image in range(rows.shape[2])]
