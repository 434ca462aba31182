"""Going through the decisions of one grid of indices, in the order in which they are coded.

Legend: B images, n positions of a block, E values of a code, K neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from codec.entropy.context_order import Block, CodingOrder
from codec.entropy.index_network import NUM_COARSE, CodebookWeights
from codec.entropy.index_tree import descend
from codec.entropy.lattice import mirrored_indices

Values = NDArray[np.int32]
Shape = tuple[int, int]  # rows, columns


@dataclass(frozen=True, slots=True)
class Step:
    """Decisions that are taken at once; m of them, at positions of B images.

    Attributes:
        codebook: Of which codebook.
        block: Places in coding order of the n positions of an image.
        tables: int64 (m,) which table codes each decision.
        nodes: int64 (m,) at which node of the tree each is.
        positions: (m,) ascending, n * image + position in the block.
        bounds: B + 1 of them: where the decisions of an image begin and end.
    """

    codebook: int
    block: slice
    tables: NDArray[np.int64]
    nodes: NDArray[np.int64]
    positions: NDArray[np.intp]
    bounds: tuple[int, ...]

    def images(self) -> Iterator[slice]:
        """Yields the decisions of each image."""
        return (slice(*pair) for pair in pairwise(self.bounds))

    def answers(self, known: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Returns which are a yes on the way to known leaves; see `IndexCoder.leaves_in_order`."""
        here = known[self.codebook][:, self.block].ravel()[self.positions]
        goes_right: NDArray[np.bool_] = here > self.nodes  # a node is the gap behind a leaf
        return goes_right


Decisions = Callable[[Step], NDArray[np.bool_]]  # returns which of the m are a yes


@dataclass(frozen=True, slots=True)
class GridWalk:
    """One codebook's grids of several images of one shape.

    Attributes:
        number: Of the codebook.
        codebook: What is known of its indices.
        order: Of the positions.
        num_images: B.
        coarse: int32 (E, B, rows * columns) values of the next coarser grid row by row, if any.
    """

    number: int
    codebook: CodebookWeights
    order: CodingOrder
    num_images: int
    coarse: Values | None

    def run(self, decide: Decisions) -> NDArray[np.int64]:
        """Returns the (B, rows * columns) leaves that the decisions led to, in coding order."""
        codebook, size = self.codebook, self.order.positions.size
        leaves = np.zeros((self.num_images, size), np.int64)
        # Behind the last position stands a 0 for neighbours that are not known yet.
        values = np.zeros((len(codebook.values), self.num_images, size + 1), np.int32)
        for block in self.order.blocks():
            found = self._block(block, values, decide)
            leaves[:, block.places] = found
            values[:, :, block.places] = codebook.values.take(found, axis=1)
        return leaves

    def _block(self, block: Block, values: Values, decide: Decisions) -> NDArray[np.int64]:
        """Returns the (B, n) leaves of a block."""
        count = block.places.stop - block.places.start
        inputs = [_gather(values, block.neighbours)]
        if self.coarse is not None:
            positions = self.order.positions[block.places]
            inputs.append(_gather(self.coarse, coarse_places(positions, self.order.shape)))
        features = self.codebook.features(block.kind, block.level, np.concatenate(inputs))
        starts = count * np.arange(self.num_images + 1)

        def step(nodes: NDArray[np.int64], positions: NDArray[np.intp]) -> NDArray[np.bool_]:
            is_whole = len(positions) == len(features)
            tables = self.codebook.tables(nodes, features if is_whole else features[positions])
            bounds = tuple(np.searchsorted(positions, starts).tolist())
            return decide(Step(self.number, block.places, tables, nodes, positions, bounds))

        found = descend(self.codebook.num_codes, count * self.num_images, step)
        return found.reshape(self.num_images, count)


def _gather(values: NDArray[np.int32], places: NDArray[np.intp]) -> NDArray[np.int32]:
    """Returns (E * K, B * n) values (E, B, N) at places (K, n) of each image."""
    shape = (len(values) * len(places), values.shape[1] * places.shape[1])
    gathered: NDArray[np.int32] = values[:, :, places].transpose(0, 2, 1, 3).reshape(shape)
    return gathered


def coarse_places(positions: NDArray[np.intp], shape: Shape) -> NDArray[np.intp]:
    """Returns row-by-row indices (9, n) of the coarser codes around positions of a grid.

    The coarser code that a position lies in comes first; of the others, those on the position's
    own side come before those on the far side.
    """
    axes = []
    for fine, side in zip(np.divmod(positions, shape[1]), shape, strict=True):
        toward = np.where(fine % 2, 1, -1)
        mirrored = mirrored_indices(side // 2, 1)
        axes.append(np.stack([mirrored[1 + fine // 2 + step * toward] for step in (0, 1, -1)]))
    rows, columns = axes  # (3, n)
    around: NDArray[np.intp] = rows[:, None] * (shape[1] // 2) + columns
    return around.reshape(NUM_COARSE, -1)
