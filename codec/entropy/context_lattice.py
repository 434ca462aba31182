"""The order of positions under the learned context model, and the neighbours that each looks at.

First every 8th row and column (the root), then for each spacing d = 4, 2, 1 two passes: the
centres of the squares of the 2d-lattice (diagonal), then what the d-lattice still lacks (edge), the
middles of the squares' sides. Each pass about doubles what is known, positions of one pass never
look at each other, and all of an edge's four nearest neighbours are known (the quincunx lattice of
Dubois and others). All channels of a position are coded before the next pass.

Legend: B images, C channels, h w their latent grid, n positions, K neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from codec.entropy.context_weights import LEVELS
from codec.entropy.lattice import Offset

Number = TypeVar("Number", np.int32, np.int64, np.float64)
ROOT, DIAGONAL, EDGE = range(3)  # as in `context_weights.KINDS`
RADIUS = 3  # the farthest that a neighbour lies, in lattice steps
BLOCK = 1 << 14  # positions of an image handled at once: bounds the memory of huge images

_REACH = 10  # squared distance of the farthest diagonal neighbours, in lattice steps
_EDGE_REACH = 5


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one of a pass's grids of positions.

    Attributes:
        origin: First (row, column) of the grid, in the image.
        period: Distance of its rows and of its columns, in the image.
        rows: Which rows of the grid.
        columns: How many columns the grid has.
    """

    origin: Offset
    period: int
    rows: range
    columns: int

    @property
    def count(self) -> int:
        """Number of positions."""
        return len(self.rows) * self.columns

    def view(self, planes: NDArray[Number]) -> NDArray[Number]:
        """Returns the positions in planes (..., h, w), as a view (..., rows, columns)."""
        top = self.origin[0] + self.rows.start * self.period
        bottom = self.origin[0] + (self.rows.stop - 1) * self.period + 1
        return planes[..., top : bottom : self.period, self.origin[1] :: self.period]


@dataclass(frozen=True, slots=True)
class ContextPass:
    """One step of the order.

    Attributes:
        kind: `ROOT`, `DIAGONAL` or `EDGE`.
        level: The lattice's spacing is 2**level.
        period: Distance of a grid's positions in the image.
        origins: First position of each of its grids.
        offsets: The neighbours, in lattice steps.
    """

    kind: int
    level: int
    period: int
    origins: tuple[Offset, ...]
    offsets: tuple[Offset, ...]

    def blocks(self, shape: tuple[int, int]) -> Iterator[list[Piece]]:
        """Cuts the positions in an (h, w) grid into blocks of about `BLOCK`."""
        block: list[Piece] = []
        for row, column in self.origins:
            rows = len(range(row, shape[0], self.period))
            columns = len(range(column, shape[1], self.period))
            height = max(1, BLOCK // columns) if columns else 1
            for top in range(0, rows if columns else 0, height):
                piece = Piece(
                    (row, column), self.period, range(top, min(top + height, rows)), columns
                )
                if block and sum(part.count for part in block) + piece.count > BLOCK:
                    yield block
                    block = []
                block.append(piece)
        if block:
            yield block


def _offsets(kind: int) -> tuple[Offset, ...]:
    """Returns the known neighbours of a kind of positions, near ones first."""
    reach = range(-RADIUS, RADIUS + 1)
    around = [(y, x) for y in reach for x in reach]
    if kind == DIAGONAL:
        known = [(y, x) for y, x in around if y % 2 and x % 2 and y * y + x * x <= _REACH]
    else:
        known = [(y, x) for y, x in around if (y + x) % 2 and y * y + x * x <= _EDGE_REACH]
    return tuple(sorted(known, key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, *offset)))


def _passes() -> tuple[ContextPass, ...]:
    period = 1 << LEVELS
    passes = [ContextPass(ROOT, 0, period, ((0, 0),), ())]
    for level in reversed(range(LEVELS)):
        d = 1 << level
        passes += [
            ContextPass(DIAGONAL, level, 2 * d, ((d, d),), _offsets(DIAGONAL)),
            ContextPass(EDGE, level, 2 * d, ((0, d), (d, 0)), _offsets(EDGE)),
        ]
    return tuple(passes)


CONTEXT_PASSES = _passes()
NUM_NEIGHBOURS = (0, len(_offsets(DIAGONAL)), len(_offsets(EDGE)))  # K of each kind
