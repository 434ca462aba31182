"""TokenLayout: the codes of an image as one sequence of tokens, and back.

Grids of codebooks follow one another coarse to fine, each row by row. Every codebook has tokens of
its own; behind them come one token a class and one for "no class", the null class, of which one
stands in front of each sequence.

Legend: L codebooks, T tokens of an image, K codes of a codebook.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.codes import Codes
from codec.entropy.index_tables import Indices
from codec.prior.directory import PriorError

MAX_TOKENS = 1 << 14
"""Of an image: attention over more would not end."""

Tokens = NDArray[np.int64]  # (T,)


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a sequence that one codebook has.

    Attributes:
        start: Its first place, counted without the class.
        stop: Behind its last place.
        first: The token of its code 0.
        num_codes: K.
    """

    start: int
    stop: int
    first: int
    num_codes: int


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How the indices of an image of one size, and its class, become tokens.

    Attributes:
        sizes: K of each codebook, coarse to fine.
        shapes: (rows, columns) of each grid.
        num_classes: Classes, the null class not counted.
    """

    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    num_classes: int

    @classmethod
    def of(
        cls, codes: Codes, size: tuple[int, int], factor: int, multiple: int, num_classes: int
    ) -> "TokenLayout":
        """Returns the layout for images of a size under a codec.

        Args:
            codes: The codec's.
            size: (width, height) in pixels.
            factor: The codec's downscale.
            multiple: What it pads sides to a multiple of.
            num_classes: See above.

        Raises:
            PriorError: An image has too many tokens.
            LatentsError: A codebook has more codes than files know.
        """
        columns, rows = (-(-side // multiple) * multiple // factor for side in size)
        grids = codes.grids(rows, columns)
        shapes = tuple((grid.rows, grid.columns) for grid in grids)
        layout = cls(tuple(codes.sizes), shapes, num_classes)
        if layout.length > MAX_TOKENS:
            raise PriorError(
                f"found {layout.length} codes in an image of {size[0]}x{size[1]} pixels, expected "
                f"at most {MAX_TOKENS}: take smaller images or a codec with a larger downscale"
            )
        return layout

    @property
    def length(self) -> int:
        """T."""
        return sum(rows * columns for rows, columns in self.shapes)

    @property
    def vocabulary(self) -> int:
        """Tokens there are: codes, classes and the null class."""
        return sum(self.sizes) + self.num_classes + 1

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of a sequence, in order."""
        counts = [rows * columns for rows, columns in self.shapes]
        stops = list(itertools.accumulate(counts))
        firsts = list(itertools.accumulate(self.sizes, initial=0))
        return tuple(
            Segment(stop - count, stop, first, size)
            for stop, count, first, size in zip(stops, counts, firsts, self.sizes, strict=False)
        )

    def class_token(self, label: int | None) -> int:
        """Returns the token of a class; None, and -1 as data sets say it, is the null class.

        Raises:
            PriorError: There is no such class.
        """
        number = -1 if label is None else label
        if not -1 <= number < self.num_classes:
            expected = f"0 to {self.num_classes - 1}, or none" if self.num_classes else "none"
            raise PriorError(f"found class {label}, expected {expected}")
        return sum(self.sizes) + (number if number >= 0 else self.num_classes)

    def to_tokens(self, indices: Indices) -> Tokens:
        """Returns the tokens (T,) of an image's indices.

        Raises:
            PriorError: The grids are of other shapes, or hold what is no code.
        """
        found = [grid.shape for grid in indices]
        if found != list(self.shapes):
            raise PriorError(
                f"found indices of shapes {found}, expected {list(self.shapes)}: take images of "
                "the size that the prior was trained on"
            )
        for grid, size in zip(indices, self.sizes, strict=True):
            if grid.min() < 0 or grid.max() >= size:
                raise PriorError(
                    f"found indices from {grid.min()} to {grid.max()}, expected 0 to {size - 1}: "
                    "take the codec that the prior was trained on"
                )
        parts = [
            grid.ravel().astype(np.int64) + segment.first
            for grid, segment in zip(indices, self.segments, strict=True)
        ]
        return np.concatenate(parts)

    def to_indices(self, tokens: Sequence[int] | Tokens) -> Indices:
        """Returns the int32 grids that tokens (T,) stand for."""
        whole = np.asarray(tokens, dtype=np.int64)
        return tuple(
            (whole[part.start : part.stop] - part.first).astype(np.int32).reshape(shape)
            for part, shape in zip(self.segments, self.shapes, strict=True)
        )
