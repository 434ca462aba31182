"""FORMAT-INDICES.md in plain Python: a decoder that shares no code with the coder."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from codec.entropy.index_coder import IndexCoder
from tests.codec.index_coders import codebook, handmade, some_indices
from tests.codec.test_context_format import blocks, clip, dot, offsets, relu
from tests.codec.test_entropy_format import RangeDecoder, mirrored

Grid = list[list[int]]
Place = tuple[int, int]
PASSES = [("root", 1, 8, [(0, 0)])]
for d in (4, 2, 1):
    PASSES += [("diagonal", d, 2 * d, [(d, d)]), ("edge", d, 2 * d, [(0, d), (d, 0)])]


class Codebook:
    """The tensors of one codebook."""

    def __init__(self, tensors: dict[str, np.ndarray], number: int) -> None:
        start = f"{number}."
        own = {name: t.tolist() for name, t in tensors.items() if name.startswith(start)}
        self.t = {name.removeprefix(start): tensor for name, tensor in own.items()}
        self.size = len(self.t["codes"])
        self.num_values = len(self.t["values"][0])

    def features(self, kind: str, level: int, x: list[int]) -> list[int]:
        t = self.t
        first = t[f"{kind}.first"], t[f"{kind}.first_bias"][level]
        a = [relu(dot(row, x) + bias) for row, bias in zip(*first, strict=True)]
        second = t[f"{kind}.second"], t[f"{kind}.second_bias"]
        return [relu(dot(row, a) + bias) for row, (bias,) in zip(*second, strict=True)]

    def row(self, node: int, features: list[int]) -> int:
        odds = dot(self.t["nodes"][node], features) + self.t["node_bias"][node]
        return clip(odds >> 13, -176, 175) + 176


def around(book: Codebook, leaves: dict[Place, int], places: list[Place]) -> list[int]:
    """Value after value, each at all places; 0 where nothing is decoded."""
    return [
        book.t["values"][leaves[place]][e] if place in leaves else 0
        for e in range(book.num_values)
        for place in places
    ]


def coarse_places(y: int, x: int, shape: Place) -> list[Place]:
    sy, sx = (1 if side % 2 else -1 for side in (y, x))
    return [
        (mirrored(y // 2 + a * sy, shape[0] // 2), mirrored(x // 2 + b * sx, shape[1] // 2))
        for a in (0, 1, -1)
        for b in (0, 1, -1)
    ]


def edges(frequency: int) -> list[int]:
    return [0, ((65536 - frequency) * (2**24 - 2) >> 16) + 1, 2**24]


def decode(tensors: dict[str, np.ndarray], payload: bytes, shapes: list[Place]) -> list[Grid]:
    coder, found = RangeDecoder(payload), []
    tables = [edges(frequency) for frequency in tensors["frequencies"].tolist()]
    before: tuple[Codebook, dict[Place, int]] | None = None
    for number, shape in enumerate(shapes):
        book, leaves = Codebook(tensors, number), {}
        for kind, d, period, origins in PASSES:
            sides = [-(-side // d) for side in shape]
            for block in blocks(origins, period, shape):
                features = []
                for y, x in block:
                    places = [
                        (d * mirrored(y // d + dy, sides[0]), d * mirrored(x // d + dx, sides[1]))
                        for dy, dx in offsets(kind)
                    ]
                    inputs = around(book, leaves, places)
                    if before is not None:
                        inputs += around(*before, coarse_places(y, x, shape))
                    features.append(book.features(kind, d.bit_length() - 1, inputs))
                spans = [(0, book.size)] * len(block)
                while any(high - low > 1 for low, high in spans):
                    for i, (low, high) in enumerate(spans):
                        if high - low > 1:
                            middle = (low + high) >> 1
                            yes = coder.entry(tables[book.row(middle - 1, features[i])])
                            spans[i] = (middle, high) if yes else (low, middle)
                leaves |= {place: low for place, (low, _) in zip(block, spans, strict=True)}
        codes = book.t["codes"]
        found.append([[codes[leaves[y, x]] for x in range(shape[1])] for y in range(shape[0])])
        before = book, leaves
    return found


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((4096,), (12, 9)),
        ((1000,), (9, 11)),  # no power of two: paths of different lengths
        ((2,), (7, 1)),
        ((37,), (1, 12)),
        ((3,), (1, 1)),
        ((64, 50), (5, 4)),
        ((5, 16, 7), (1, 2)),
    ],
)
def test_a_decoder_written_from_the_format_reads_the_payload(
    tmp_path: Path, sizes: tuple[int, ...], shape: Place
) -> None:
    coder = handmade(*sizes)
    coder.save(tmp_path / "entropy.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "entropy.safetensors")
    indices = some_indices(sizes, shape)
    payload = coder.encode(indices)
    found = decode(tensors, payload, [grid.shape for grid in indices])
    assert found == [grid.tolist() for grid in indices]


def test_blocks_of_a_large_grid_follow_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = codebook(6, values=1, units=1, features=2)
    coder = IndexCoder((small,), handmade(2).frequencies)
    coder.save(tmp_path / "entropy.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "entropy.safetensors")
    indices = some_indices((6,), (127, 264))
    payload = coder.encode(indices)
    monkeypatch.setattr("codec.entropy.context_lattice.BLOCK", 1 << 30)
    assert coder.encode(indices) != payload  # so this grid has pieces and blocks
    assert decode(tensors, payload, [(127, 264)]) == [indices[0].tolist()]
