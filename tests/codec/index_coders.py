"""Models of indices of plain numbers that no training can change."""

import numpy as np
from numpy.typing import NDArray

from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_network import (
    KINDS,
    LEVELS,
    NUM_TABLES,
    CodebookWeights,
    IndexKindWeights,
    num_inputs,
)
from tests.codec.context_coders import numbers


def codebook(
    size: int, coarse: int = 0, values: int = 3, units: int = 6, features: int = 5
) -> CodebookWeights:
    """Small weights, of codes finer than ones of so many values."""
    kinds = []
    for kind in range(len(KINDS)):
        inputs = num_inputs(kind, values, coarse)
        kinds.append(
            IndexKindWeights(
                first=numbers(units, inputs, spread=400),
                first_bias=numbers(LEVELS, units, spread=90_000),
                second=numbers(features, units, spread=700),
                second_bias=numbers(features, 1, spread=90_000),
            )
        )
    return CodebookWeights(
        codes=np.arange(size) * _coprime(size) % size,
        values=numbers(values, size, spread=500).numpy(),
        nodes=numbers(size - 1, features, spread=900).numpy(),
        node_bias=numbers(size - 1, spread=200_000).numpy(),
        kinds=tuple(kinds),
    )


def handmade(*sizes: int) -> IndexCoder:
    """A coder of codebooks of so many codes, coarse to fine."""
    books = tuple(codebook(size, coarse=3 if number else 0) for number, size in enumerate(sizes))
    frequencies = np.linspace(1, 65535, NUM_TABLES).astype(np.int64)
    return IndexCoder(books, frequencies)


def some_indices(
    sizes: tuple[int, ...], shape: tuple[int, int], seed: int = 0
) -> tuple[NDArray[np.int32], ...]:
    """Random indices; the coarsest grid has that shape."""
    random = np.random.default_rng(seed)
    return tuple(
        random.integers(0, size, (shape[0] << level, shape[1] << level), np.int32)
        for level, size in enumerate(sizes)
    )


def golden_indices() -> tuple[NDArray[np.int32], ...]:
    """Indices of 50 and 300 codes that follow from a formula: (9, 5) and (18, 10)."""
    index = np.arange(9 * 5)
    top = ((index * index // 7 + 3 * index) % 50).reshape(9, 5).astype(np.int32)
    bottom = (top.repeat(2, axis=0).repeat(2, axis=1) * 11 + np.arange(10)) % 300
    return top, bottom.astype(np.int32)


def _coprime(size: int) -> int:
    """A step that visits all codes."""
    return next(step for step in range(size // 2 + 1, 2 * size) if np.gcd(step, size) == 1)
