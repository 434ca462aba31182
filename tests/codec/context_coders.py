"""A learned context model of plain numbers that no training can change."""

import numpy as np
import torch

from codec.entropy.context_coder import ContextCoder
from codec.entropy.context_lattice import NUM_NEIGHBOURS
from codec.entropy.context_network import ContextNetwork
from codec.entropy.context_weights import LEVELS, KindWeights
from codec.entropy.tables import ALPHABET, NUM_FRACTIONS, Tables, bin_thresholds


def numbers(*shape: int, spread: int, middle: int = 0) -> torch.Tensor:
    """Integers from middle - spread to middle + spread that depend on the shape alone."""
    count = int(np.prod(shape))
    mixed = (np.arange(count, dtype=np.int64) * 7919 + count * 104729) % (2 * spread + 1)
    return torch.from_numpy((mixed - spread + middle).reshape(shape).astype(np.int32))


def kind_weights(channels: int, neighbours: int, units: int = 6, per_head: int = 4) -> KindWeights:
    """Small weights; means are near a quarter of the neighbours' sum, scales near one symbol."""
    inputs = neighbours * channels + 1
    below = torch.tril(torch.ones(channels, channels, dtype=torch.int32), diagonal=-1)[:, None]
    linear = numbers(channels, inputs, spread=60)
    for channel in range(channels):
        linear[channel, channel : inputs - 1 : channels] += 1024 // max(neighbours, 1)
    return KindWeights(
        first=numbers(units, inputs, spread=900),
        first_bias=numbers(LEVELS, units, spread=90_000),
        second=numbers(units, units, spread=700),
        second_bias=numbers(units, 1, spread=90_000),
        head=numbers(channels * per_head, units, spread=600),
        head_bias=numbers(channels * per_head, 1, spread=90_000),
        cross=numbers(channels, per_head, channels, spread=500) * below,
        output=numbers(channels, 2, per_head, spread=300),
        output_bias=numbers(channels, 2, 1, spread=60_000, middle=-40_000),
        linear=linear,
        linear_cross=numbers(channels, 1, channels, spread=300) * below,
    )


def handmade(channels: int = 2) -> ContextCoder:
    """A coder whose tables are discretised exponentials."""
    distance = np.abs(np.arange(ALPHABET) - ALPHABET // 2)
    num_bins = len(bin_thresholds()) + 1
    rows = []
    for index in np.repeat(np.arange(num_bins), NUM_FRACTIONS).tolist():
        row = 1 + (8192 >> np.minimum(distance * (num_bins - index) // 8, 20))
        row = row * 60_000 // row.sum() + 1
        row[ALPHABET // 2] += 65536 - row.sum()
        rows.append(row)
    network = ContextNetwork(
        np.arange(1, channels + 1, dtype=np.int64) * 40_000,
        tuple(kind_weights(channels, neighbours) for neighbours in NUM_NEIGHBOURS),
    )
    return ContextCoder(network, Tables(bin_thresholds(), np.array(rows, np.int32)))
