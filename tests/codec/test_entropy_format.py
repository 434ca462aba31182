"""FORMAT.md in plain Python: a decoder that shares no code with the coder."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from codec.entropy import SymbolCoder
from codec.entropy.fit import fit

WINDOW = ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
# first row, first column (in d), period (in d), reach; "root" has d = 16.
CLASSES = ((1, 1, 10), (0, 1, 5), (1, 0, 5))


class RangeDecoder:
    """The section "Range coder"."""

    def __init__(self, payload: bytes) -> None:
        self.rest = iter(payload)
        self.range = 2**64 - 1
        self.point = self.take(8)

    def take(self, count: int) -> int:
        return int.from_bytes(bytes(next(self.rest, 0) for _ in range(count)), "big")

    def entry(self, edges: list[int]) -> int:
        scale = self.range >> 24
        quantile = self.point // scale
        assert quantile < 1 << 24
        index = bisect_right(edges, quantile) - 1
        self.point -= edges[index] * scale
        self.range = (edges[index + 1] - edges[index]) * scale
        if self.range < 2**32:
            self.range <<= 32
            self.point = (self.point << 32) | self.take(4)
        return index

    def field(self, bits: int) -> int:
        scale = self.range >> 24
        value = (self.point // scale) >> (24 - bits)
        self.point -= (value << (24 - bits)) * scale
        self.range = (1 << (24 - bits)) * scale
        if self.range < 2**32:
            self.range <<= 32
            self.point = (self.point << 32) | self.take(4)
        return value


def mirrored(index: int, size: int) -> int:
    if size == 1:
        return 0
    index = abs(index) % (2 * size - 2)
    return min(index, 2 * size - 2 - index)


def passes() -> list[tuple[int, int, int, int, int]]:
    """(d, first row, first column, period, reach), in image units."""
    found = [(16, 0, 0, 16, 0)]
    for d in (8, 4, 2, 1):
        found += [(d, row * d, column * d, 2 * d, reach) for row, column, reach in CLASSES]
    return found


def own_offsets(d: int, row: int, column: int, reach: int) -> list[tuple[int, int]]:
    order = [(0, 0), (1, 1), (0, 1), (1, 0)]
    mine = order.index((row // d, column // d))
    square = range(-3, 4)
    known = [
        (dy * dy + dx * dx, dy, dx)
        for dy in square
        for dx in square
        if dy * dy + dx * dx <= reach
        and order.index(((row // d + dy) % 2, (column // d + dx) % 2)) < mine
    ]
    return [(dy, dx) for _, dy, dx in sorted(known)]


def decode(
    tensors: dict[str, np.ndarray], payload: bytes, shape: tuple[int, int, int], step: int
) -> list[list[list[int]]]:
    num_channels, height, width = shape
    mean_weights = iter(tensors["mean_weights"].tolist())
    scale_weights = iter(tensors["scale_weights"].tolist())
    constants = tensors["constants"].tolist()
    thresholds = tensors["thresholds"].tolist()
    tables = [
        [(total * (2**24 - 51) >> 16) + i for i, total in enumerate([0, *accumulate(row[:-1])])]
        + [2**24]
        for row in tensors["frequencies"].tolist()
    ]
    coder = RangeDecoder(payload)
    symbols = [[[0] * width for _ in range(height)] for _ in range(num_channels)]
    for c in range(num_channels):
        for index, (d, row, column, period, reach) in enumerate(passes()):
            offsets = own_offsets(d, row, column, reach) if reach else []
            near = sum(dy * dy + dx * dx <= 5 for dy, dx in offsets)
            weights = [next(mean_weights) for _ in range(len(offsets) + 9 * c)]
            factors = [next(scale_weights) for _ in range(near + 8 * c)]
            bias, scale_bias, raw_bias = constants[c][index]
            positions = [
                (y, x) for y in range(row, height, period) for x in range(column, width, period)
            ]
            chosen = []
            for y, x in positions:
                rows, columns = -(-height // d), -(-width // d)
                values = [
                    symbols[c][d * mirrored(y // d + dy, rows)][d * mirrored(x // d + dx, columns)]
                    for dy, dx in offsets
                ]
                values += [
                    symbols[e][mirrored(y + dy, height)][mirrored(x + dx, width)]
                    for e in range(c)
                    for dy, dx in WINDOW
                ]
                total = sum(w * v for w, v in zip(weights, values, strict=True))
                mean = (total + (bias << 16) // step + 32) >> 6
                mean = max(1 - 2**28, min(2**28 - 1, mean))
                features = [abs((v << 8) - mean) for v in values[:near]]
                for start in range(len(offsets), len(values), 9):
                    centre, *rim = values[start : start + 9]
                    features += [abs(v - centre) << 8 for v in rim]
                total = sum(w * f for w, f in zip(factors, features, strict=True))
                scale = (total + scale_bias + (raw_bias << 16) // step) >> 12
                scale = max(1, min(2**28 - 1, scale))
                shift = (scale >> 10).bit_length()
                m = (mean - (((1 << shift) - 1) << 7)) >> shift
                base = (m + 128) >> 8
                distance = m - (base << 8)
                table = 4 * bisect_right(thresholds, scale >> shift) + min(abs(distance) // 32, 3)
                chosen.append((table, shift, base, distance < 0))
            entries = [coder.entry(tables[table]) for table, *_ in chosen]
            lows = [coder.field(shift) if shift else 0 for _, shift, *_ in chosen]
            differences = [entry - 25 for entry in entries]
            escapes = [i for i, entry in enumerate(entries) if entry in (0, 50)]
            digits = {i: coder.field(5) for i in escapes}
            for i in escapes:
                rest = coder.field(digits[i]) if digits[i] else 0
                magnitude = 24 + (1 << digits[i]) + rest
                differences[i] = -magnitude if entries[i] == 0 else magnitude
            for (y, x), difference, low, (_, shift, base, flip) in zip(
                positions, differences, lows, chosen, strict=True
            ):
                signed = -difference if flip else difference
                symbols[c][y][x] = ((base + signed) << shift) + low
    return symbols


@pytest.mark.parametrize(
    ("shape", "spread", "step"),
    [
        ((3, 20, 18), 1.0, 26214),
        ((3, 1, 9), 1.0, 26214),
        ((3, 7, 1), 40.0, 655),
        ((3, 5, 6), 1e5, 65536),
        ((3, 2, 2), 0.0, 1),
    ],
)
def test_a_decoder_written_from_the_format_reads_the_payload(
    tmp_path: Path, shape: tuple[int, int, int], spread: float, step: int
) -> None:
    random = np.random.default_rng(5)
    latents = [random.normal(size=(3, 24, 24)).cumsum(axis=1).astype(np.float32) for _ in range(4)]
    coder = fit(latents, [6553, 26214, 131072])
    coder.save(tmp_path / "entropy.safetensors")
    assert SymbolCoder.load(tmp_path / "entropy.safetensors").encode
    tensors = safetensors.numpy.load_file(tmp_path / "entropy.safetensors")
    symbols = np.rint(random.normal(size=shape) * spread * 65536 / step)
    symbols = np.clip(symbols, -(2**20) + 1, 2**20 - 1).astype(np.int32)
    payload = coder.encode(symbols, step)
    assert decode(tensors, payload, shape, step) == symbols.tolist()
