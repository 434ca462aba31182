"""The conditional model of indices in integers: what is decoded so far to the odds of a decision.

The codes of a codebook are the leaves of a binary tree in which near codes share their first
branches (hierarchical softmax; Morin and Bengio, 2005), so an index is a few yes-no decisions. A
small network looks at the code vectors around a position and gives it features; each inner node of
the tree has weights of its own, and their product with the features is the decision's log odds.

Everything is int32 with shifts that round down, so each machine, number of threads and batch gets
the same numbers; sums are bounded when weights are loaded.

Legend: K codes, E values of a code, D inputs, H hidden units, R features, n positions.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.entropy.payload import FREQUENCY_BITS
from codec.entropy.tables import TablesError

KINDS = ("root", "diagonal", "edge")  # of positions, see `codec.entropy.context_lattice`
NUM_NEIGHBOURS = (0, 12, 12)  # of each kind
NUM_COARSE = 9  # coarser codes around a position that are looked at too
LEVELS = 3  # lattice spacings 1, 2, 4
VALUE_BITS = 7  # of values, hidden units and features
WEIGHT_BITS = 10
VALUE_LIMIT = (1 << 12) - 1
UNIT_LIMIT = (1 << 11) - 1  # hidden units and features end at 16
ODDS_BITS = 4  # log odds are told apart in steps of 1/16
MAX_ODDS = 176  # 11.0, where a decision is as good as certain
NUM_TABLES = 2 * MAX_ODDS

_ODDS_SHIFT = VALUE_BITS + WEIGHT_BITS - ODDS_BITS
_SUM_LIMIT = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class IndexKindWeights:
    """The network of one kind of positions; all int32, biases in units of 2**-17.

    Attributes:
        first: (H, D) over the values around the position.
        first_bias: (LEVELS, H).
        second: (R, H).
        second_bias: (R, 1).
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


@dataclass(frozen=True, slots=True)
class CodebookWeights:
    """All that is known of the indices of one codebook.

    Attributes:
        codes: int64 (K,) the code at each leaf of the tree, from left to right.
        values: int32 (E, K) values of the code at each leaf, in units of 2**-7.
        nodes: int32 (K - 1, R) weights of each inner node; see `codec.entropy.index_tree`.
        node_bias: int32 (K - 1,).
        kinds: One network for each of `KINDS`.
    """

    codes: NDArray[np.int64]
    values: NDArray[np.int32]
    nodes: NDArray[np.int32]
    node_bias: NDArray[np.int32]
    kinds: tuple[IndexKindWeights, ...]

    def __post_init__(self) -> None:
        if not np.array_equal(np.sort(self.codes), np.arange(len(self.codes))):
            raise TablesError(
                "leaves were found that do not hold each code once; export the model again"
            )
        if np.abs(self.values).max() > VALUE_LIMIT:
            raise TablesError(
                f"values of codes up to {np.abs(self.values).max()} were found where "
                f"{VALUE_LIMIT} is the limit; export the model again"
            )
        _check_sums(self)

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.codes)

    def features(self, kind: int, level: int, inputs: NDArray[np.int32]) -> NDArray[np.int32]:
        """Runs the network.

        Args:
            kind: Place in `KINDS`.
            level: Of the lattice spacing 2**level.
            inputs: int32 (D, n): each of the E values at all neighbours, one value after another,
                then likewise those of the coarser codes.

        Returns:
            int32 (n, R) from 0 to `UNIT_LIMIT`.
        """
        net = self.kinds[kind]
        hidden = _rectify(net.first @ torch.from_numpy(inputs) + net.first_bias[level][:, None])
        features = _rectify(net.second @ hidden + net.second_bias)
        return np.ascontiguousarray(features.numpy().T)

    def tables(self, nodes: NDArray[np.int64], features: NDArray[np.int32]) -> NDArray[np.int64]:
        """Returns (n,) which table codes the decision at a node each, 0 to `NUM_TABLES` - 1.

        Args:
            nodes: int64 (n,), from 0 to K - 2.
            features: int32 (n, R).
        """
        sums = np.einsum("nr,nr->n", self.nodes.take(nodes, axis=0), features)
        sums += self.node_bias.take(nodes)
        sums >>= _ODDS_SHIFT
        np.minimum(sums, MAX_ODDS - 1, out=sums)
        np.maximum(sums, -MAX_ODDS, out=sums)
        tables: NDArray[np.int64] = sums.astype(np.int64) + MAX_ODDS
        return tables


def num_inputs(kind: int, num_values: int, num_coarse_values: int) -> int:
    """Returns D for codes of E values, finer than codes of so many (0 where there are none)."""
    return NUM_NEIGHBOURS[kind] * num_values + NUM_COARSE * num_coarse_values


def logistic_frequencies() -> NDArray[np.int64]:
    """Returns (NUM_TABLES,) frequencies of a yes that log odds of so many sixteenths stand for."""
    odds = (np.arange(NUM_TABLES) - MAX_ODDS + 0.5) / (1 << ODDS_BITS)
    return round_frequencies(1 / (1 + np.exp(-odds)))


def round_frequencies(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns probabilities of a yes as frequencies out of 2**16, never 0 nor all of it."""
    whole = 1 << FREQUENCY_BITS
    frequencies: NDArray[np.int64] = np.clip(np.rint(shares * whole), 1, whole - 1).astype(np.int64)
    return frequencies


def _rectify(sums: Tensor) -> Tensor:
    """Returns units of sums in units of 2**-17."""
    return (sums >> WEIGHT_BITS).clamp_(0, UNIT_LIMIT)


def _check_sums(weights: CodebookWeights) -> None:
    """Refuses weights whose sums could leave int32."""
    bounds = [_bound(weights.nodes, UNIT_LIMIT) + np.abs(weights.node_bias.astype(np.int64))]
    for net in weights.kinds:
        first, second = net.first_bias.long().abs().amax(0), net.second_bias[:, 0].long().abs()
        bounds.append(_bound(net.first.numpy(), VALUE_LIMIT) + first.numpy())
        bounds.append(_bound(net.second.numpy(), UNIT_LIMIT) + second.numpy())
    largest = max(int(bound.max()) for bound in bounds)
    if largest > _SUM_LIMIT:
        raise TablesError(
            f"weights of indices whose sums reach 2**{math.log2(largest):.1f} were found where "
            "2**31 is the limit; export the model again"
        )


def _bound(weights: NDArray[np.int32], limit: int) -> NDArray[np.int64]:
    """Returns how large each row's sum may become with inputs up to the limit."""
    sums: NDArray[np.int64] = np.abs(weights.astype(np.int64)).sum(axis=1)
    return sums * limit
