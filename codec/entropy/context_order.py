"""Places of positions in coding order, and where the neighbours of each stand in that order.

`codec.entropy.context_lattice` says in which order positions come and which neighbours each looks
at. Here that becomes index arrays: with values kept in coding order a block is a slice of them, and
its inputs are one gather.

Legend: h w the latent grid, n positions of a block, K neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codec.entropy.context_lattice import CONTEXT_PASSES, RADIUS, ContextPass, Piece
from codec.entropy.lattice import mirrored_indices

Indices = NDArray[np.intp]
_KEPT_POSITIONS = 1 << 14  # of a grid whose blocks are worth keeping: 1.5 MiB of indices


@dataclass(frozen=True, slots=True)
class Block:
    """Positions that are coded together.

    Attributes:
        kind: Place in `context_weights.KINDS`.
        level: The lattice's spacing is 2**level.
        places: Of its positions in coding order; one slice.
        neighbours: (K, n) places in coding order, all before this block; or h * w, where a zero
            stands, for those not known: a lattice of one row or column is mirrored onto itself.
    """

    kind: int
    level: int
    places: slice
    neighbours: Indices


@dataclass(frozen=True, slots=True)
class CodingOrder:
    """The order of the positions of one latent grid.

    Attributes:
        shape: (h, w).
        positions: (h * w,) row-by-row index of the position at each place.
        places: (h * w,) its inverse.
        kept: The blocks, where the grid is small enough to keep them.
    """

    shape: tuple[int, int]
    positions: Indices
    places: Indices
    kept: tuple[Block, ...] | None

    def blocks(self) -> Iterator[Block]:
        """Yields the blocks in coding order."""
        yield from _blocks(self.shape, self.places) if self.kept is None else self.kept


def coding_order(shape: tuple[int, int]) -> CodingOrder:
    """Returns the order of an (h, w) grid."""
    return _kept_order(shape) if shape[0] * shape[1] <= _KEPT_POSITIONS else _order(shape)


@lru_cache(maxsize=16)
def _kept_order(shape: tuple[int, int]) -> CodingOrder:
    order = _order(shape)
    return CodingOrder(shape, order.positions, order.places, tuple(_blocks(shape, order.places)))


def _order(shape: tuple[int, int]) -> CodingOrder:
    raster = np.arange(shape[0] * shape[1]).reshape(shape)
    positions = np.concatenate(
        [
            piece.view(raster).ravel()
            for order in CONTEXT_PASSES
            for block in order.blocks(shape)
            for piece in block
        ]
    )
    places = np.empty_like(positions)
    places[positions] = np.arange(positions.size)
    return CodingOrder(shape, positions, places, None)


def _blocks(shape: tuple[int, int], places: Indices) -> Iterator[Block]:
    start = 0
    for order in CONTEXT_PASSES:
        for pieces in order.blocks(shape):
            count = sum(piece.count for piece in pieces)
            neighbours = np.concatenate(
                [places[_neighbours(shape, order, piece)] for piece in pieces], axis=1
            )
            neighbours[neighbours >= start] = len(places)
            yield Block(order.kind, order.level, slice(start, start + count), neighbours)
            start += count


def _neighbours(shape: tuple[int, int], order: ContextPass, piece: Piece) -> Indices:
    """Returns the (K, n) row-by-row indices of a piece's neighbours, mirrored at the borders."""
    spacing = 1 << order.level
    axes = []
    for side, first, count, axis in (
        (shape[0], piece.origin[0] // spacing + 2 * piece.rows.start, len(piece.rows), 0),
        (shape[1], piece.origin[1] // spacing, piece.columns, 1),
    ):
        steps = np.array([offset[axis] for offset in order.offsets], np.intp)[:, None]
        mirrored = mirrored_indices(-(-side // spacing), RADIUS)
        axes.append(spacing * mirrored[RADIUS + steps + first + 2 * np.arange(count)])
    rows, columns = axes  # (K, rows of the piece), (K, columns)
    indices: Indices = rows[:, :, None] * shape[1] + columns[:, None, :]
    return indices.reshape(len(order.offsets), piece.count)
