"""The binary tree over the codes of a codebook: an index as a path of yes-no decisions.

The tree has no stored shape. Its leaves stand in a row, and a node holds the leaves from `low` to
`high - 1`; it asks whether a leaf is at `middle = (low + high) // 2` or behind. So the K - 1 inner
nodes are the gaps between leaves, counted by `middle - 1`, and of 2**d codes all have d decisions.

Legend: K codes, n positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Takes int64 nodes (m,) and which of the positions they are at (m,); returns bool (m,).
Decide = Callable[[NDArray[np.int64], NDArray[np.intp]], NDArray[np.bool_]]


def descend(num_codes: int, num_positions: int, decide: Decide) -> NDArray[np.int64]:
    """Walks from the root to a leaf at all positions at once.

    Args:
        num_codes: K.
        num_positions: n.
        decide: Says which of the positions go on to the right.

    Returns:
        int64 (n,) leaves.
    """
    low = np.zeros(num_positions, np.int64)
    high = np.full(num_positions, num_codes, np.int64)
    everywhere = np.arange(num_positions)
    for _ in range(num_codes.bit_length() - 1):  # so long every node has two leaves at least
        middle = (low + high) >> 1
        goes_right = decide(middle - 1, everywhere)
        low, high = np.where(goes_right, middle, low), np.where(goes_right, high, middle)
    pairs = np.flatnonzero(high - low > 1)  # none where K is a power of two
    if pairs.size:
        low[pairs] += decide(low[pairs], pairs)
    return low


@dataclass(frozen=True, slots=True)
class Paths:
    """The path to each leaf; d is the longest path's length.

    Attributes:
        nodes: int64 (K, d), 0 where a shorter path has ended.
        goes_right: bool (K, d).
        is_step: bool (K, d), whether the path is so long.
    """

    nodes: NDArray[np.int64]
    goes_right: NDArray[np.bool_]
    is_step: NDArray[np.bool_]


def leaf_paths(num_codes: int) -> Paths:
    """Returns the paths to all leaves."""
    leaves = np.arange(num_codes)
    depth = (num_codes - 1).bit_length()
    nodes = np.zeros((num_codes, depth), np.int64)
    goes_right, is_step = np.zeros((2, num_codes, depth), bool)
    step = 0

    def decide(at: NDArray[np.int64], places: NDArray[np.intp]) -> NDArray[np.bool_]:
        nonlocal step
        right: NDArray[np.bool_] = leaves[places] > at  # the gap behind leaf `at`
        nodes[places, step], goes_right[places, step], is_step[places, step] = at, right, True
        step += 1
        return right

    descend(num_codes, num_codes, decide)
    return Paths(nodes, goes_right, is_step)


def order_codes(vectors: Floats, weights: Floats) -> NDArray[np.int64]:
    """Arranges codes so that near ones stand together: splits them again and again where they vary.

    Each node's codes are sorted along their direction of greatest variance.

    Args:
        vectors: (K, dimensions) of the codes.
        weights: (K,) positive, how much each code counts.

    Returns:
        (K,) the code of each leaf.
    """
    found: list[NDArray[np.int64]] = []
    waiting = [np.arange(len(vectors))]
    while waiting:
        codes = waiting.pop()
        if len(codes) == 1:
            found.append(codes)
            continue
        middle = len(codes) // 2
        ordered = codes[np.argsort(_along_widest(vectors[codes], weights[codes]), kind="stable")]
        waiting += [ordered[middle:], ordered[:middle]]
    return np.concatenate(found)


def _along_widest(
    vectors: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns (n,) places of vectors along the direction in which they vary most."""
    shares = weights / weights.sum()
    centred = vectors - shares @ vectors
    _, directions = np.linalg.eigh((centred * shares[:, None]).T @ centred)
    widest = directions[:, -1]
    along: Floats = centred @ (widest * np.sign(widest[np.abs(widest).argmax()]))
    return along
