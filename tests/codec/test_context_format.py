"""FORMAT-CONTEXT.md in plain Python: a decoder that shares no code with the coder."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.codec.context_coders import handmade
from tests.codec.test_entropy_format import RangeDecoder, mirrored

Grid = tuple[int, int]


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def relu(value: int) -> int:
    return clip(value >> 10, 0, 2047)


def log2q(value: int, bits: int) -> int:
    power = value ** (2**bits)
    return power.bit_length() - 1 - (16 << bits)


def offsets(kind: str) -> list[Grid]:
    square = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    if kind == "root":
        return []
    if kind == "diagonal":
        known = [(y, x) for y, x in square if y % 2 and x % 2 and y * y + x * x <= 10]
    else:
        known = [(y, x) for y, x in square if (y + x) % 2 and y * y + x * x <= 5]
    return sorted(known, key=lambda o: (o[0] ** 2 + o[1] ** 2, *o))


def dot(row: list[int], vector: list[int]) -> int:
    return sum(a * b for a, b in zip(row, vector, strict=True))


class Model:
    """The section "Prediction"."""

    def __init__(self, tensors: dict[str, np.ndarray], step: int) -> None:
        self.t = {name: tensor.tolist() for name, tensor in tensors.items()}
        deviations = self.t["deviations"]
        mean = sum(deviations) // len(deviations)
        self.ratios = [clip((d << 16) // step, 1, 2**36) for d in deviations]
        self.factors = [min((step << 23) // d, 2**40) for d in deviations]
        self.log_step = clip(-log2q(max(1, (mean << 16) // step), 7), -2047, 2047)

    def value(self, symbol: int, channel: int) -> int:
        return clip((symbol * self.factors[channel] + 2**15) >> 16, -4095, 4095)

    def hidden(self, kind: str, level: int, x: list[int]) -> list[int]:
        t = self.t
        first = t[f"{kind}.first"], t[f"{kind}.first_bias"][level]
        a = [relu(dot(row, x) + bias) for row, bias in zip(*first, strict=True)]
        second = t[f"{kind}.second"], t[f"{kind}.second_bias"]
        return [relu(dot(row, a) + bias) for row, (bias,) in zip(*second, strict=True)]

    def predict(
        self, kind: str, c: int, x: list[int], b: list[int], earlier: list[int]
    ) -> tuple[int, int]:
        t, e = self.t, earlier
        per_head = len(t[f"{kind}.head"]) // len(self.ratios)
        part = slice(c * per_head, (c + 1) * per_head)
        g = [
            relu(dot(row, b) + bias + dot(cross[: len(e)], e))
            for row, (bias,), cross in zip(
                t[f"{kind}.head"][part],
                t[f"{kind}.head_bias"][part],
                t[f"{kind}.cross"][c],
                strict=True,
            )
        ]
        o = [
            dot(row, g) + bias
            for row, (bias,) in zip(
                t[f"{kind}.output"][c], t[f"{kind}.output_bias"][c], strict=True
            )
        ]
        straight = dot(t[f"{kind}.linear"][c], x)
        straight += dot(t[f"{kind}.linear_cross"][c][0][: len(e)], e)
        mean = (((straight + o[0]) >> 5) * self.ratios[c] + 2**19) >> 20
        return clip(mean, 1 - 2**28, 2**28 - 1), (o[1] >> 12) + log2q(self.ratios[c], 5)


def blocks(origins: list[Grid], period: int, shape: Grid) -> list[list[Grid]]:
    found: list[list[Grid]] = []
    block: list[Grid] = []
    for row, column in origins:
        ys, xs = range(row, shape[0], period), range(column, shape[1], period)
        if not len(xs):
            continue
        height = max(1, 16384 // len(xs))
        for top in range(0, len(ys), height):
            piece = [(y, x) for y in ys[top : top + height] for x in xs]
            if block and len(block) + len(piece) > 16384:
                found.append(block)
                block = []
            block = block + piece
    return [*found, block] if block else found


def decode(
    tensors: dict[str, np.ndarray], payload: bytes, shape: tuple[int, int, int], step: int
) -> list[list[list[int]]]:
    channels, height, width = shape
    model = Model(tensors, step)
    tables = [
        [(total * (2**24 - 51) >> 16) + i for i, total in enumerate([0, *accumulate(row[:-1])])]
        + [2**24]
        for row in model.t["frequencies"]
    ]
    coder = RangeDecoder(payload)
    symbols = [[[0] * width for _ in range(height)] for _ in range(channels)]
    passes = [("root", 1, 8, [(0, 0)])]
    for d in (4, 2, 1):
        passes += [("diagonal", d, 2 * d, [(d, d)]), ("edge", d, 2 * d, [(0, d), (d, 0)])]
    for kind, d, period, origins in passes:
        level = d.bit_length() - 1
        rows, columns = -(-height // d), -(-width // d)
        for block in blocks(origins, period, (height, width)):
            inputs, units = [], []
            for y, x in block:
                around = [
                    (d * mirrored(y // d + dy, rows), d * mirrored(x // d + dx, columns))
                    for dy, dx in offsets(kind)
                ]
                values = [
                    model.value(symbols[c][v][u], c) for v, u in around for c in range(channels)
                ]
                inputs.append([*values, model.log_step])
                units.append(model.hidden(kind, level, inputs[-1]))
            for c in range(channels):
                chosen = []
                for (y, x), seen, b in zip(block, inputs, units, strict=True):
                    earlier = [model.value(symbols[e][y][x], e) for e in range(c)]
                    mean, t = model.predict(kind, c, seen, b, earlier)
                    shift = clip(((t - 64) >> 5) + 1, 0, 18)
                    index = clip(((t - 32 * shift + 160) >> 3) + 1, 0, 28)
                    m = (mean - (((1 << shift) - 1) << 7)) >> shift
                    base = (m + 128) >> 8
                    distance = m - (base << 8)
                    row = 4 * index + min(abs(distance) // 32, 3)
                    chosen.append((row, shift, base, distance < 0))
                entries = [coder.entry(tables[row]) for row, *_ in chosen]
                lows = [coder.field(shift) if shift else 0 for _, shift, *_ in chosen]
                differences = [entry - 25 for entry in entries]
                escapes = [i for i, entry in enumerate(entries) if entry in (0, 50)]
                digits = {i: coder.field(5) for i in escapes}
                for i in escapes:
                    rest = coder.field(digits[i]) if digits[i] else 0
                    magnitude = 24 + (1 << digits[i]) + rest
                    differences[i] = -magnitude if entries[i] == 0 else magnitude
                for (y, x), difference, low, (_, shift, base, flip) in zip(
                    block, differences, lows, chosen, strict=True
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
        ((3, 9, 8), 3.0, 2**32 - 1),
    ],
)
def test_a_decoder_written_from_the_format_reads_the_payload(
    tmp_path: Path, shape: tuple[int, int, int], spread: float, step: int
) -> None:
    random = np.random.default_rng(5)
    coder = handmade(3)
    coder.save(tmp_path / "entropy.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "entropy.safetensors")
    symbols = np.rint(random.normal(size=shape) * spread * 65536 / step)
    symbols = np.clip(symbols, -(2**20) + 1, 2**20 - 1).astype(np.int32)
    payload = coder.encode(symbols, step)
    assert decode(tensors, payload, shape, step) == symbols.tolist()


def test_blocks_of_a_large_image_follow_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = handmade(2)
    coder.save(tmp_path / "entropy.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "entropy.safetensors")
    symbols = (np.arange(2 * 127 * 264).reshape(2, 127, 264) // 97 % 7 - 3).astype(np.int32)
    payload = coder.encode(symbols, 65536)
    monkeypatch.setattr("codec.entropy.context_lattice.BLOCK", 1 << 30)
    assert coder.encode(symbols, 65536) != payload  # so this image has pieces and blocks
    assert decode(tensors, payload, (2, 127, 264), 65536) == symbols.tolist()
