"""The differentiable twin of `codec.entropy.index_network`: same order, tree and layers, in floats.

Legend: B images, K codes, E values of a code, H hidden units, R features, N positions of a grid in
coding order, n of them in a block.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.entropy.context_order import coding_order
from codec.entropy.fit_indices import TreeFit
from codec.entropy.index_network import (
    KINDS,
    LEVELS,
    UNIT_LIMIT,
    VALUE_BITS,
    VALUE_LIMIT,
    num_inputs,
)
from codec.entropy.index_tree import leaf_paths
from codec.entropy.index_walk import coarse_places
from train.entropy.sections import IndicesConfig

MAX_UNIT = UNIT_LIMIT / (1 << VALUE_BITS)
MAX_VALUE = VALUE_LIMIT / (1 << VALUE_BITS)
_MAX_START = 4.0
"""Standard deviations within which the values of codes begin."""


class KindNetwork(nn.Module):
    """The layers of one kind of positions; see `IndexKindWeights`."""

    def __init__(self, inputs: int, units: int, features: int) -> None:
        super().__init__()
        self.num_inputs = inputs
        self.first = nn.Linear(max(1, inputs), units)
        self.level_bias = nn.Parameter(torch.zeros(LEVELS, units))
        self.second = nn.Linear(units, features)

    def forward(self, inputs: Tensor, level: int) -> Tensor:
        """Features (B, n, R) of inputs (B, n, D); no inputs count as one that is 0."""
        if not self.num_inputs:
            inputs = inputs.new_zeros(*inputs.shape[:-1], 1)
        hidden = _rectify(self.first(inputs) + self.level_bias[level])
        return _rectify(self.second(hidden))


class CodebookModel(nn.Module):
    """The indices of one codebook.

    Attributes:
        codes: int64 (K,) the code of each leaf.
        leaves: int64 (K,) its inverse.
        values: (K, E) of the code at each leaf.
        nodes: (K - 1, R) weights of each decision.
        node_bias: (K - 1, 1).
    """

    codes: Tensor
    leaves: Tensor
    path: Tensor
    goes_right: Tensor
    is_step: Tensor

    def __init__(self, num_codes: int, num_coarse: int, settings: IndicesConfig) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(num_codes))
        self.register_buffer("leaves", torch.arange(num_codes))
        paths = leaf_paths(num_codes)
        self.register_buffer("path", torch.from_numpy(paths.nodes), persistent=False)
        sides = np.where(paths.goes_right, 1.0, -1.0).astype(np.float32)
        self.register_buffer("sides", torch.from_numpy(sides), persistent=False)
        self.register_buffer("is_step", torch.from_numpy(paths.is_step), persistent=False)
        self.sides: Tensor
        self.values = nn.Parameter(torch.zeros(num_codes, settings.values))
        self.nodes = nn.Parameter(torch.randn(num_codes - 1, settings.features) * 0.02)
        self.node_bias = nn.Parameter(torch.zeros(num_codes - 1, 1))
        self.networks = nn.ModuleDict(
            {
                kind: KindNetwork(
                    num_inputs(place, settings.values, num_coarse),
                    settings.units,
                    settings.features,
                )
                for place, kind in enumerate(KINDS)
            }
        )

    @torch.no_grad()
    def start(self, tree: TreeFit, vectors: NDArray[np.float64]) -> None:
        """Begin with code vectors (K, dimensions) as values, and with counted odds."""
        self.codes.copy_(torch.from_numpy(tree.codes))
        self.leaves[self.codes] = torch.arange(len(self.codes), device=self.codes.device)
        self.node_bias.copy_(torch.from_numpy(tree.odds)[:, None])
        found = _principal(vectors, tree.counts)[tree.codes, : self.values.shape[1]]
        self.values.normal_(std=0.5)
        self.values[:, : found.shape[1]] = torch.from_numpy(found).clamp(-_MAX_START, _MAX_START)

    def forward(self, leaves: Tensor, shape: tuple[int, int], coarse: Tensor | None) -> Tensor:
        """Bits (B,) of a grid.

        Args:
            leaves: int64 (B, N) in coding order.
            shape: of the grid.
            coarse: values (B, N', E') of the coarser grid row by row, if there is one.
        """
        order = coding_order(shape)
        values = F.pad(self.lookup(leaves), (0, 0, 0, 1))  # a 0 for neighbours not known yet
        total = values.new_zeros(len(leaves))
        for block in order.blocks():
            inputs = [_around(values, block.neighbours)]
            if coarse is not None:
                positions = order.positions[block.places]
                inputs.append(_around(coarse, coarse_places(positions, order.shape)))
            network = self.networks[KINDS[block.kind]]
            features = network(torch.cat(inputs, dim=-1), block.level)
            total = total + self._bits(features, leaves[:, block.places])
        return total

    def lookup(self, leaves: Tensor) -> Tensor:
        """Values (..., E) of leaves."""
        return F.embedding(leaves, self.values.clamp(-MAX_VALUE, MAX_VALUE))

    def _bits(self, features: Tensor, leaves: Tensor) -> Tensor:
        """Bits (B,) of the decisions to leaves (B, n) under features (B, n, R)."""
        path = self.path[leaves]  # (B, n, d)
        odds = torch.einsum("bnr,bndr->bnd", features, F.embedding(path, self.nodes))
        odds = (odds + F.embedding(path, self.node_bias)[..., 0]) * self.sides[leaves]
        bits = F.softplus(-odds) * self.is_step[leaves]
        return bits.flatten(1).sum(dim=1) / math.log(2)


class IndexModel(nn.Module):
    """Estimates the bits of indices.

    Args:
        sizes: number of codes of each codebook, coarse to fine.
        settings: of the network.
    """

    def __init__(self, sizes: Sequence[int], settings: IndicesConfig) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(
            CodebookModel(size, settings.values if number else 0, settings)
            for number, size in enumerate(sizes)
        )

    def start(self, trees: Sequence[TreeFit], vectors: Sequence[NDArray[np.float64]]) -> None:
        """Begin with fitted trees and code vectors (K, dimensions) of each codebook."""
        for book, tree, table in zip(self.codebooks, trees, vectors, strict=True):
            book.start(tree, table)

    def forward(self, planes: Tensor) -> Tensor:
        """Bits of each image.

        Args:
            planes: int64 (B, L, h, w) indices of L codebooks, coarse to fine, each repeated to the
                finest grid.

        Returns:
            float32 (B,).
        """
        total = torch.zeros(len(planes), device=planes.device)
        coarse: Tensor | None = None
        for level, book in enumerate(self.codebooks):
            stride = 1 << (len(self.codebooks) - 1 - level)
            grid = planes[:, level, ::stride, ::stride]
            leaves = book.leaves[grid.flatten(1)]
            shape = (int(grid.shape[1]), int(grid.shape[2]))
            positions = torch.from_numpy(coding_order(shape).positions).to(grid.device)
            total = total + book(leaves[:, positions], shape, coarse)
            coarse = book.lookup(leaves)
        return total


def _around(values: Tensor, places: NDArray[np.intp]) -> Tensor:
    """Inputs (B, n, E * K) from values (B, N, E) at places (K, n)."""
    if not len(places):
        return values.new_zeros(len(values), places.shape[1], 0)
    found = values[:, torch.from_numpy(places).to(values.device)]  # (B, K, n, E)
    return found.permute(0, 2, 3, 1).flatten(2)


def _principal(vectors: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Code vectors (K, dimensions) along their principal directions, each of unit variance."""
    shares = counts / counts.sum()
    centred = vectors - shares @ vectors
    variances, directions = np.linalg.eigh((centred * shares[:, None]).T @ centred)
    kept = variances > 1e-9 * variances[-1]
    found = centred @ directions[:, kept] / np.sqrt(variances[kept])
    return np.ascontiguousarray(found[:, ::-1]).astype(np.float32)


def _rectify(x: Tensor) -> Tensor:
    return F.hardtanh(x, 0.0, MAX_UNIT)
