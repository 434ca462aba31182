"""Any size in bounded memory: overlapping tiles that reproduce the whole exactly.

The networks see only a bounded neighbourhood, so a tile that is read with that margin around it
gives, after the margin is cut off, the values that the whole image gives (up to the rounding of
float sums). No blending, no seams. Lengths are counted in cells of the latent grid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_CELLS = 128
"""Cells kept from one tile a side: 1024 pixels at f = 8, some 250 MB at work in float32."""


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis, in cells: what is read, and what of it is kept."""

    read_start: int
    read_stop: int
    start: int
    stop: int

    def read(self, scale: int = 1) -> slice:
        """The part to read from an array with `scale` samples a cell."""
        return slice(self.read_start * scale, self.read_stop * scale)

    def keep(self, scale: int = 1) -> slice:
        """The part of the tile's own result that is kept."""
        return slice((self.start - self.read_start) * scale, (self.stop - self.read_start) * scale)

    def write(self, scale: int = 1) -> slice:
        """Where the kept part lands in the whole."""
        return slice(self.start * scale, self.stop * scale)


def spans(length: int, tile: int, margin: int) -> list[Span]:
    """Cut `length` cells into pieces of at most `tile`, each read with `margin` around it."""
    if length < 1 or tile < 1 or margin < 0:
        raise ValueError(
            f"found length {length}, tile {tile}, margin {margin}; expected a length and a "
            "tile of at least 1 and a margin of at least 0"
        )
    starts = range(0, length, tile)
    return [
        Span(max(0, s - margin), min(length, s + tile + margin), s, min(length, s + tile))
        for s in starts
    ]


def tiles(height: int, width: int, tile: int, margin: int) -> Iterator[tuple[Span, Span]]:
    """The tiles of a grid of `height` x `width` cells, row by row."""
    columns = spans(width, tile, margin)
    for row in spans(height, tile, margin):
        for column in columns:
            yield row, column


def map_tiles(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    in_scale: int,
    out_scale: int,
    margin: int,
    tile: int = TILE_CELLS,
) -> Tensor:
    """Apply `run` tile by tile and join the results.

    Args:
        run: maps (B, D, h * in_scale, w * in_scale) to (B, E, h * out_scale, w * out_scale).
        x: (B, D, H * in_scale, W * in_scale), any dtype.
        in_scale: samples a cell of the input (f for the encoder, 1 for the decoder).
        out_scale: samples a cell of the output.
        margin: cells that an output can see past its own cell.
        tile: cells kept from one tile a side.

    Returns:
        (B, E, H * out_scale, W * out_scale), what `run(x)` gives.
    """
    height, width = x.shape[-2] // in_scale, x.shape[-1] // in_scale
    whole: Tensor | None = None
    for row, column in tiles(height, width, tile, margin):
        part = run(x[..., row.read(in_scale), column.read(in_scale)])
        if whole is None:
            size = (*part.shape[:2], height * out_scale, width * out_scale)
            whole = torch.empty(size, dtype=part.dtype, device=part.device)
        kept = part[..., row.keep(out_scale), column.keep(out_scale)]
        whole[..., row.write(out_scale), column.write(out_scale)] = kept
    assert whole is not None
    return whole
