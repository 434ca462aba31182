"""Tables that travel in a file: what codes the latents of a model that has no coder of its own.

The frequency tables are `standard_tables`; which of them codes a symbol follows from its mean and
scale, predicted as in `codec.entropy.context` but by a handful of weights: one for each ring of
neighbours in the symbol's own channel, one for how much the neighbours differ and one for how
lively the earlier channels are around the place. These weights and the channels' means are small
integers, 20 to 30 bytes for four channels: the body of the chunk TABL. TABLES.md beside this file
specifies it.

Legend: C channels, h w cells of the latent grid, r rings of neighbours at equal distance.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.entropy.lattice import PASSES, Pass
from codec.entropy.payload import BitCounter, PayloadReader, PayloadWriter, probabilities
from codec.entropy.residuals import SYMBOL_LIMIT, read_block, write_block
from codec.entropy.ring_features import (
    CLASSES,
    MAX_SCALE,
    RINGS,
    Features,
    Integers,
    features_of,
    liveliness,
    rim_distances,
)
from codec.entropy.standard_tables import standard_tables
from codec.entropy.tables import FRACTION_BITS, Choice
from codec.wire import AGAIN, InvalidTablesError, Reader, encode_varint

SCALE_BITS = 6  # fixed point of the weights of a scale


@dataclass(frozen=True, slots=True)
class ClassWeights:
    """How the positions of one class are predicted.

    Attributes:
        rings: Weight of each neighbour of a ring in the mean, in units of 2**-7; -128 to 127.
        near: Weight of the near neighbours' mean distance from the mean in the scale, in units of
            2**-6; 0 to 255.
        live: Weight of how lively the earlier channels are, likewise.
        constant: Added to the scale, in units of 2**-8 symbols; 0 to `MAX_SCALE`.
    """

    rings: tuple[int, ...]
    near: int
    live: int
    constant: int


@dataclass(frozen=True, slots=True)
class FileTables:
    """Codes integer latents of one file.

    Attributes:
        means: The mean of each channel, in whole symbols.
        root_scale: Expected absolute difference from it at the first, widely spaced positions, in
            units of 2**-8 symbols; 0 to `MAX_SCALE`.
        sets: Weights of each class, in the order of `CLASSES`: one set for all channels, or one a
            channel.
    """

    means: tuple[int, ...]
    root_scale: int
    sets: tuple[tuple[ClassWeights, ...], ...]

    @classmethod
    def from_bytes(cls, body: bytes, num_channels: int) -> Self:
        """Reads the body of TABL.

        Raises:
            InvalidTablesError: It is malformed, or a value is out of its range.
        """
        fields = Reader(io.BytesIO(body), "TABL chunk", InvalidTablesError, InvalidTablesError)
        kind = fields.take_byte("kind")
        if kind > 1:
            raise InvalidTablesError(
                f"the file's tables are of kind {kind}; this release knows 0 and 1: "
                "update latent-codec"
            )
        root_scale = _bounded(fields.take_varint("scale"), MAX_SCALE)
        means = tuple(_signed(fields.take_varint("means")) for _ in range(num_channels))
        _bounded(max(map(abs, means)), SYMBOL_LIMIT - 1)
        sets = tuple(
            tuple(_read_weights(fields, len(RINGS[place])) for place in CLASSES)
            for _ in range(num_channels if kind else 1)
        )
        if fields.position != len(body):
            raise InvalidTablesError(
                f"the file's tables have {len(body)} bytes; expected {fields.position}: {AGAIN}"
            )
        return cls(means, root_scale, sets)

    def to_bytes(self) -> bytes:
        """Returns the body of TABL."""
        weights = b"".join(_write_weights(entry) for one in self.sets for entry in one)
        means = b"".join(
            encode_varint(2 * mean if mean >= 0 else -2 * mean - 1) for mean in self.means
        )
        kind = bytes([len(self.sets) > 1])
        return kind + encode_varint(self.root_scale) + means + weights

    def encode(self, symbols: NDArray[np.int32]) -> bytes:
        """Returns the payload of symbols, int32 (C, h, w) strictly between -2**20 and 2**20."""
        writer = PayloadWriter(probabilities(standard_tables().frequencies))
        self._write(writer, symbols)
        return writer.finish(symbols.size)

    def estimate_bits(self, symbols: NDArray[np.int32]) -> float:
        """Returns the ideal code length of symbols in bits, without the tables' own."""
        counter = BitCounter(probabilities(standard_tables().frequencies))
        self._write(counter, symbols)
        return counter.total

    def decode(self, payload: bytes, shape: tuple[int, int, int]) -> NDArray[np.int32]:
        """Returns the int32 (C, h, w) symbols that `encode` made `payload` from.

        Damaged bytes either raise or give other symbols in range; a checksum beside them tells.

        Raises:
            PayloadError: The bytes are no payload of these tables.
        """
        table = probabilities(standard_tables().frequencies)
        reader = PayloadReader(table, payload, shape[0] * shape[1] * shape[2])
        planes = np.zeros(shape, np.int32)
        self._run(planes, lambda choice, *_: read_block(reader, choice))
        return planes

    def _write(self, writer: PayloadWriter | BitCounter, symbols: NDArray[np.int32]) -> None:
        assert symbols.dtype == np.int32
        assert len(symbols) == len(self.means)

        def write(choice: Choice, channel: int, order: Pass, rows: range) -> Integers:
            view = order.view(symbols[channel])[rows.start : rows.stop]
            block = view.astype(np.int64).ravel()
            write_block(writer, choice, block)
            return block

        self._run(np.zeros(symbols.shape, np.int32), write)

    def _run(
        self,
        planes: NDArray[np.int32],
        code_block: Callable[[Choice, int, Pass, range], Integers],
    ) -> None:
        """Walks through all positions in coding order and fills `planes`, zeros at first."""
        tables = standard_tables()
        activity = np.zeros(planes.shape[1:], np.int64)
        for channel, mean in enumerate(self.means):
            plane = np.zeros(planes.shape[1:], np.int64)
            live = liveliness(activity, channel)
            for order in PASSES:
                coded = []
                for rows, features in features_of(plane, live, order, mean):
                    means, scales = self._predict(features, channel, order)
                    coded.append(code_block(tables.choose(means, scales), channel, order, rows))
                if coded:
                    order.view(plane)[...] = np.concatenate(coded).reshape(order.view(plane).shape)
            planes[channel] = plane
            activity += rim_distances(plane)

    def _predict(self, features: Features, channel: int, order: Pass) -> tuple[Integers, Integers]:
        """Returns (n,) means and scales, both in units of 2**-8 symbols."""
        centre = self.means[channel] << FRACTION_BITS
        if not order.offsets:
            count = features.live.shape
            return np.full(count, centre), np.full(count, max(1, self.root_scale))
        one = self.sets[channel if len(self.sets) > 1 else 0]
        weights = one[CLASSES.index((order.row, order.column))]
        means = features.means(weights.rings)
        sums = weights.near * features.near(means) + weights.live * features.live
        return means, np.clip((sums >> SCALE_BITS) + weights.constant, 1, MAX_SCALE)


def _read_weights(fields: Reader, num_rings: int) -> ClassWeights:
    raw = fields.take(num_rings + 2, "weights")
    rings = tuple(int(value) for value in np.frombuffer(raw[:num_rings], np.int8))
    constant = _bounded(fields.take_varint("constants"), MAX_SCALE)
    return ClassWeights(rings, raw[num_rings], raw[num_rings + 1], constant)


def _write_weights(weights: ClassWeights) -> bytes:
    rings = np.array(weights.rings, np.int8).tobytes()
    return rings + bytes([weights.near, weights.live]) + encode_varint(weights.constant)


def _signed(value: int) -> int:
    return -((value + 1) >> 1) if value & 1 else value >> 1


def _bounded(value: int, most: int) -> int:
    if value > most:
        raise InvalidTablesError(
            f"the file's tables hold the number {value}; expected at most {most}: {AGAIN}"
        )
    return value
