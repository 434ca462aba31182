"""entropy/TABLES.md in plain Python: a decoder of such files that shares no code with the coder."""

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import isqrt
from pathlib import Path

import numpy as np
import pytest

from codec.entropy import file_tables
from codec.entropy.fit_file_tables import fit_file_tables
from codec.entropy.index_tables import encode_indices
from tests.codec.test_bitstream import GOLDEN_INDICES, GOLDEN_SYMBOLS, INDEX_FILE, STEPPED_FILE
from tests.codec.test_entropy_format import RangeDecoder, mirrored, own_offsets, passes

SPECIFICATION = Path(file_tables.__file__).with_name("TABLES.md").read_text(encoding="utf-8")
THRESHOLDS = [
    int(word)
    for line in SPECIFICATION.splitlines()
    if line.strip().startswith("8 10 11 13")
    for word in line.split()
]
CLASS_WEIGHTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
RINGS = ((2, 10), (1, 5), (1, 2, 5))
RIM = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def varint(data: Iterator[int]) -> int:
    value = shift = 0
    while True:
        byte = next(data)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def edges_of(frequencies: list[int]) -> list[int]:
    n = len(frequencies)
    totals = [0, *accumulate(frequencies[:-1])]
    return [(total * (2**24 - n) >> 16) + i for i, total in enumerate(totals)] + [2**24]


def power(exponent: int) -> int:
    p, r = 2**64, 2**63
    for bit in range(15, -1, -1):
        r = isqrt(r << 64)
        if exponent >> bit & 1:
            p = (p * r) >> 64
    return p >> (exponent >> 16)


def logistic_table(bin_: int, fraction: int) -> list[int]:
    t = [7, *THRESHOLDS, 1024]
    s = isqrt((t[bin_] * t[bin_ + 1]) << 16)
    below = [0]
    for d in range(-24, 26):
        x = ((16 * d - 9 - 2 * fraction) << 29) // s
        p = power(abs(x))
        below.append((2**128 if x >= 0 else p << 64) // (2**64 + p))
    below.append(2**64)
    frequencies = [1 + ((after - before) * (2**16 - 51) >> 64) for before, after in pairwise(below)]
    frequencies[frequencies.index(max(frequencies))] += 2**16 - sum(frequencies)
    return frequencies


def decode_latents(tables: bytes, payload: bytes, shape: tuple[int, int, int]) -> list[int]:
    num_channels, height, width = shape
    data = iter(tables)
    kind = next(data)
    root_scale = varint(data)
    codes = [varint(data) for _ in range(num_channels)]
    channel_means = [-(code + 1) // 2 if code % 2 else code // 2 for code in codes]
    sets = [
        [
            ([signed(next(data)) for _ in rings], next(data), next(data), varint(data))
            for rings in RINGS
        ]
        for _ in range(num_channels if kind else 1)
    ]
    assert next(data, None) is None
    edges = [edges_of(logistic_table(b, f)) for b in range(29) for f in range(4)]
    coder = RangeDecoder(payload)
    symbols = [[[0] * width for _ in range(height)] for _ in range(num_channels)]
    for c, m in enumerate(channel_means):
        for index, (d, row, column, period, reach) in enumerate(passes()):
            offsets = own_offsets(d, row, column, reach) if reach else []
            rows, columns = -(-height // d), -(-width // d)
            chosen = []
            for y in range(row, height, period):
                for x in range(column, width, period):
                    if not reach:
                        mean, scale = m << 8, max(1, root_scale)
                    else:
                        place = (index - 1) % 3
                        rings, near_weight, live_weight, constant = sets[c if kind else 0][place]
                        values = [
                            symbols[c][d * mirrored(y // d + dy, rows)][
                                d * mirrored(x // d + dx, columns)
                            ]
                            for dy, dx in offsets
                        ]
                        weights = dict(zip(RINGS[place], rings, strict=True))
                        total = sum(
                            weights[dy * dy + dx * dx] * (v - m)
                            for (dy, dx), v in zip(offsets, values, strict=True)
                        )
                        mean = max(1 - 2**28, min(2**28 - 1, (total << 1) + (m << 8)))
                        n = sum(dy * dy + dx * dx <= 5 for dy, dx in offsets)
                        near = sum(abs((v << 8) - mean) for v in values[:n]) // n
                        a = sum(
                            abs(
                                symbols[e][mirrored(y + dy, height)][mirrored(x + dx, width)]
                                - symbols[e][y][x]
                            )
                            for e in range(c)
                            for dy, dx in RIM
                        )
                        live = (a << 8) // (8 * c) if c else 0
                        scale = ((near_weight * near + live_weight * live) >> 6) + constant
                        scale = max(1, min(2**28 - 1, scale))
                    shift = (scale >> 10).bit_length()
                    mean = (mean - (((1 << shift) - 1) << 7)) >> shift
                    base = (mean + 128) >> 8
                    distance = mean - (base << 8)
                    table = 4 * bisect_right(THRESHOLDS, scale >> shift)
                    table += min(abs(distance) // 32, 3)
                    chosen.append((y, x, table, shift, base, distance < 0))
            entries = [coder.entry(edges[table]) for _, _, table, *_ in chosen]
            lows = [coder.field(shift) if shift else 0 for _, _, _, shift, *_ in chosen]
            digits = {i: coder.field(5) for i, entry in enumerate(entries) if entry in (0, 50)}
            escapes = {i: (1 << k) + (coder.field(k) if k else 0) for i, k in digits.items()}
            for i, (y, x, _, shift, base, flip) in enumerate(chosen):
                difference = entries[i] - 25
                if i in escapes:
                    difference = (24 + escapes[i]) * (-1 if entries[i] == 0 else 1)
                difference = -difference if flip else difference
                symbols[c][y][x] = ((base + difference) << shift) + lows[i]
    return np.array(symbols).ravel().tolist()


def decode_codes(tables: bytes, payload: bytes, grids: list[tuple[int, int]]) -> list[list[int]]:
    """Grids are given as (number of codes, number of indices)."""
    data = iter(tables)
    known: list[tuple[list[int], list[int]] | None] = []
    for size, _ in grids:
        if next(data) == 0:
            known.append(None)
            continue
        used: list[int] = []
        place, in_use = 0, False
        while place < size:
            run = varint(data)
            used += range(place, place + run) if in_use else ()
            place, in_use = place + run, not in_use
        packed = [next(data) for _ in range((len(used) + 1) // 2)]
        nibbles = [half for byte in packed for half in (byte & 15, byte >> 4)][: len(used)]
        weights = [CLASS_WEIGHTS[nibble] for nibble in nibbles]
        frequencies = [1 + w * (2**16 - len(used)) // sum(weights) for w in weights]
        frequencies[frequencies.index(max(frequencies))] += 2**16 - sum(frequencies)
        known.append((used, frequencies))
    assert next(data, None) is None
    coder, found = RangeDecoder(payload), []
    for (size, count), one in zip(grids, known, strict=True):
        if one is None:
            found.append([coder.field((size - 1).bit_length()) for _ in range(count)])
        elif len(one[0]) == 1:
            found.append(one[0] * count)
        else:
            edges = edges_of(one[1])
            found.append([one[0][coder.entry(edges)] for _ in range(count)])
    return found


def test_the_examples_of_the_specification_decode() -> None:
    assert STEPPED_FILE.tables is not None
    found = decode_latents(STEPPED_FILE.tables, STEPPED_FILE.payload, (2, 1, 3))
    assert tuple(found) == GOLDEN_SYMBOLS
    packed = struct.pack("<6i", *found)
    assert zlib.crc32(packed) == STEPPED_FILE.header.symbols_crc32
    assert INDEX_FILE.tables is not None
    indices = decode_codes(INDEX_FILE.tables, INDEX_FILE.payload, [(512, 2), (1000, 8)])
    assert tuple(map(tuple, indices)) == GOLDEN_INDICES


@pytest.mark.parametrize(
    ("shape", "spread"),
    [((3, 20, 18), 4.0), ((1, 1, 1), 1.0), ((2, 7, 1), 200.0), ((2, 5, 6), 1e5), ((3, 2, 2), 0.0)],
)
def test_a_decoder_written_from_the_specification_reads_latents(
    shape: tuple[int, int, int], spread: float
) -> None:
    random = np.random.default_rng(5)
    symbols = random.normal(random.normal(size=(shape[0], 1, 1)), 1, shape).cumsum(axis=1) * spread
    symbols = np.clip(np.rint(symbols), -(2**20) + 1, 2**20 - 1).astype(np.int32)
    tables = fit_file_tables(symbols)
    found = decode_latents(tables.to_bytes(), tables.encode(symbols), shape)
    assert found == symbols.ravel().tolist()


@pytest.mark.parametrize("skew", [0.0, 0.1, 40.0])
def test_a_decoder_written_from_the_specification_reads_indices(skew: float) -> None:
    random = np.random.default_rng(6)
    odds = np.exp(-skew * np.arange(64))
    small = random.choice(64, (16, 20), p=odds / odds.sum()).astype(np.int32)
    large = random.integers(0, 5000, (3, 3)).astype(np.int32)
    tables, payload = encode_indices((large, small), (5000, 64))
    assert tables[:2] == (b"\x00\x00" if skew == 0 else b"\x00\x01")
    found = decode_codes(tables, payload, [(5000, 9), (64, 320)])
    assert found == [large.ravel().tolist(), small.ravel().tolist()]
