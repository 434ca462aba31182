"""The order of positions inside one channel, and the neighbours that each position may look at.

A channel is coded coarse to fine. First every 16th row and column (the root pass), then for each
spacing d = 8, 4, 2, 1 the three classes of positions that the d-lattice adds to the 2d-lattice:
centres of its squares, then middles of its horizontal edges, then of its vertical ones. Positions
of one pass never look at each other, so a pass is one vectorised step, and each looks at
neighbours on all sides (interlacing, as in progressive GIF or "hierarchical interpolation", Roos
et al., 1988).
"""

from dataclasses import dataclass
from functools import cache
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Offset = tuple[int, int]  # (rows down, columns right)
Number = TypeVar("Number", np.int32, np.int64, np.float64)

ROOT_SPACING = 16
RADIUS = 3  # the farthest that a neighbour lies, in lattice steps
BLOCK = 1 << 16  # positions handled at once: bounds the memory of huge images

# Where to look in the earlier channels, which are known everywhere: distances in the image itself.
WINDOW: tuple[Offset, ...] = (
    (0, 0), (-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1),
)  # fmt: skip

# (row, column) of each class inside the 2x2 cell of a lattice, in coding order; (0, 0) is known.
_CLASSES: tuple[Offset, ...] = ((0, 0), (1, 1), (0, 1), (1, 0))
# How far a class looks, as a squared distance in lattice steps, and what counts as near.
_REACH = {(1, 1): 10, (0, 1): 5, (1, 0): 5}
_NEAR = 5


@dataclass(frozen=True, slots=True)
class Pass:
    """One step of the order: positions (row + i * stride, column + j * stride) of the d-lattice.

    Attributes:
        spacing: d, the distance of the lattice's rows and columns in the image.
        row: First row, in lattice steps.
        column: First column, in lattice steps.
        stride: Distance of the pass's own positions, in lattice steps.
        offsets: Neighbours known from earlier passes, in lattice steps, near ones first.
    """

    spacing: int
    row: int
    column: int
    stride: int
    offsets: tuple[Offset, ...]

    def view(self, plane: NDArray[Number]) -> NDArray[Number]:
        """Return the pass's positions in an (h, w) plane, as a view; it may be empty."""
        step = self.stride * self.spacing
        return plane[self.row * self.spacing :: step, self.column * self.spacing :: step]

    @property
    def num_near(self) -> int:
        """How many of the offsets lie within a squared distance of 5; they come first."""
        return sum(dy * dy + dx * dx <= _NEAR for dy, dx in self.offsets)


def _known_offsets(row: int, column: int) -> tuple[Offset, ...]:
    """Return the neighbours of class (row, column) that belong to classes coded before it."""
    order = _CLASSES.index((row, column))
    reach = range(-RADIUS, RADIUS + 1)
    known = [
        (dy * dy + dx * dx, dy, dx)
        for dy in reach
        for dx in reach
        if _CLASSES.index(((row + dy) % 2, (column + dx) % 2)) < order
        and dy * dy + dx * dx <= _REACH[row, column]
    ]
    return tuple((dy, dx) for _, dy, dx in sorted(known))


def _passes() -> tuple[Pass, ...]:
    passes = [Pass(ROOT_SPACING, 0, 0, 1, ())]
    spacing = ROOT_SPACING // 2
    while spacing:
        passes += [Pass(spacing, y, x, 2, _known_offsets(y, x)) for y, x in _CLASSES[1:]]
        spacing //= 2
    return tuple(passes)


PASSES = _passes()


@cache
def mirrored_indices(size: int, margin: int) -> NDArray[np.int64]:
    """Return indices -margin .. size + margin - 1 mirrored into 0 .. size - 1, ends not repeated.

    Mirroring about a lattice's first and last row keeps even rows even and odd rows odd, so a
    mirrored neighbour is known exactly when the neighbour itself would be.
    """
    if size == 1:
        return np.zeros(1 + 2 * margin, np.int64)
    indices = np.abs(np.arange(-margin, size + margin)) % (2 * size - 2)
    mirrored: NDArray[np.int64] = np.minimum(indices, 2 * size - 2 - indices)
    return mirrored


def mirror(grid: NDArray[np.int64], margin: int) -> NDArray[np.int64]:
    """Return an (h, w) grid with a mirrored margin on all sides."""
    rows, columns = grid.shape
    return grid[mirrored_indices(rows, margin)[:, None], mirrored_indices(columns, margin)]


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What one pass of one channel may look at.

    Attributes:
        lattice: The channel's d-lattice with a margin of `RADIUS`; positions not yet coded are 0.
        earlier: The whole earlier channels, each with a margin of 1.
        order: The pass.
        shape: Rows and columns of the pass's own positions.
    """

    lattice: NDArray[np.int64]
    earlier: tuple[NDArray[np.int64], ...]
    order: Pass
    shape: tuple[int, int]

    @classmethod
    def of(
        cls, plane: NDArray[np.int64], earlier: tuple[NDArray[np.int64], ...], order: Pass
    ) -> Self:
        """Take the neighbourhood from an (h, w) channel as far as it is known."""
        lattice = plane[:: order.spacing, :: order.spacing]
        return cls(mirror(lattice, RADIUS), earlier, order, order.view(plane).shape)

    def gather(self, rows: range) -> NDArray[np.int64]:
        """Return the (K, n) neighbours of the pass's positions in some of its rows.

        First those of the channel itself in the order of `Pass.offsets`, then for each earlier
        channel the `WINDOW` around the same position.
        """
        order, columns = self.order, self.shape[1]
        num_own = len(order.offsets)
        out = np.empty((num_own + len(WINDOW) * len(self.earlier), len(rows), columns), np.int64)
        row, stride = order.row + rows.start * order.stride, order.stride
        _collect(out[:num_own], self.lattice, RADIUS, order.offsets, (row, order.column), stride)
        start, stride = (row * order.spacing, order.column * order.spacing), stride * order.spacing
        for index, plane in enumerate(self.earlier):
            first = num_own + len(WINDOW) * index
            _collect(out[first : first + len(WINDOW)], plane, 1, WINDOW, start, stride)
        return out.reshape(len(out), len(rows) * columns)


def _collect(
    out: NDArray[np.int64],
    padded: NDArray[np.int64],
    margin: int,
    offsets: tuple[Offset, ...],
    start: Offset,
    stride: int,
) -> None:
    """Fill (K, rows, columns) `out` with values at K offsets from regularly spaced positions."""
    height, width = ((count - 1) * stride + 1 for count in out.shape[1:])
    for values, (dy, dx) in zip(out, offsets, strict=True):
        y, x = start[0] + margin + dy, start[1] + margin + dx
        values[...] = padded[y : y + height : stride, x : x + width : stride]
