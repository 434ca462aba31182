"""Fitting a coder of indices: the tree of each codebook, how often codes occur, and the tables.

`fit_frequencies` gives frequency tables alone: its network looks at nothing, and each decision has
the odds that it had in the given indices. Learned models are trained elsewhere and begin there.

Legend: K codes, D dimensions of a code vector, E values of a code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_network import (
    KINDS,
    LEVELS,
    NUM_TABLES,
    VALUE_BITS,
    WEIGHT_BITS,
    CodebookWeights,
    IndexKindWeights,
    logistic_frequencies,
    num_inputs,
    round_frequencies,
)
from codec.entropy.index_tables import Indices
from codec.entropy.index_tree import leaf_paths, order_codes
from codec.entropy.index_walk import Step
from codec.entropy.payload import FREQUENCY_BITS

Floats = NDArray[np.float64]

_PRIOR_COUNT = 0.5  # of each code, beside those counted
_PRIOR_DECISIONS = 64.0  # how many counted ones the logistic curve weighs as much as


@dataclass(frozen=True, slots=True)
class TreeFit:
    """The tree of one codebook.

    Attributes:
        codes: int64 (K,) the code of each leaf.
        counts: (K,) how often each code was seen, never 0.
        odds: (K - 1,) natural logarithm of how much oftener each node's decision is a yes.
    """

    codes: NDArray[np.int64]
    counts: Floats
    odds: Floats


def fit_trees(images: Sequence[Indices], vectors: Sequence[Floats]) -> tuple[TreeFit, ...]:
    """Arranges the codes of each codebook and counts the decisions.

    Args:
        images: Indices of training images.
        vectors: (K, D) code vectors of each codebook, coarse to fine.
    """
    trees = []
    for number, book in enumerate(vectors):
        counts = np.full(len(book), _PRIOR_COUNT)
        for image in images:
            counts += np.bincount(image[number].ravel(), minlength=len(book))
        codes = order_codes(book, counts)
        trees.append(TreeFit(codes, counts, _odds(counts[codes])))
    return tuple(trees)


def fit_frequencies(images: Sequence[Indices], vectors: Sequence[Floats]) -> IndexCoder:
    """Fits a coder that knows how often codes occur, and nothing else.

    Args:
        images: As for `fit_trees`.
        vectors: Likewise.
    """
    codebooks: list[CodebookWeights] = []
    for tree in fit_trees(images, vectors):
        num_nodes, finer = len(tree.odds), bool(codebooks)
        codebooks.append(
            CodebookWeights(
                codes=tree.codes,
                values=np.zeros((1, num_nodes + 1), np.int32),
                nodes=np.zeros((num_nodes, 1), np.int32),
                node_bias=to_fixed(tree.odds),
                kinds=tuple(_blind(kind, finer) for kind in range(len(KINDS))),
            )
        )
    return IndexCoder(tuple(codebooks), logistic_frequencies())


def fit_tables(coder: IndexCoder, images: Sequence[Indices]) -> IndexCoder:
    """Returns a coder with tables counted on what its decisions were in images."""
    counts = np.zeros((2, NUM_TABLES))
    for image in images:
        known = coder.leaves_in_order([image])

        def count(step: Step, known: list[NDArray[np.int64]] = known) -> NDArray[np.bool_]:
            goes_right = step.answers(known)
            counts[1] += np.bincount(step.tables[goes_right], minlength=NUM_TABLES)
            counts[0] += np.bincount(step.tables[~goes_right], minlength=NUM_TABLES)
            return goes_right

        coder.walk([grid.shape for grid in image], 1, count)
    logistic = logistic_frequencies() / (1 << FREQUENCY_BITS)
    shares = (counts[1] + _PRIOR_DECISIONS * logistic) / (counts.sum(axis=0) + _PRIOR_DECISIONS)
    return IndexCoder(coder.codebooks, round_frequencies(shares))


def to_fixed(values: NDArray[np.floating]) -> NDArray[np.int32]:
    """Returns biases in units of 2**-17."""
    fixed: NDArray[np.int32] = np.rint(values * (1 << (VALUE_BITS + WEIGHT_BITS))).astype(np.int32)
    return fixed


def _odds(counts: Floats) -> Floats:
    """Returns the log odds (K - 1,) of the nodes over leaves that occur so often."""
    paths, num_nodes = leaf_paths(len(counts)), len(counts) - 1
    occurring = np.broadcast_to(counts[:, None], paths.nodes.shape)
    right, left = (
        np.bincount(paths.nodes[taken], weights=occurring[taken], minlength=num_nodes)
        for taken in (paths.goes_right, paths.is_step & ~paths.goes_right)
    )
    odds: Floats = np.log(right / left)
    return odds


def _blind(kind: int, finer: bool) -> IndexKindWeights:
    """Returns a network of one unit that looks at nothing."""
    return IndexKindWeights(
        first=torch.zeros((1, num_inputs(kind, 1, int(finer))), dtype=torch.int32),
        first_bias=torch.zeros((LEVELS, 1), dtype=torch.int32),
        second=torch.zeros((1, 1), dtype=torch.int32),
        second_bias=torch.zeros((1, 1), dtype=torch.int32),
    )
