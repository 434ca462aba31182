"""The codes of a discrete autoencoder and their indices, exact whatever the model computes in.

Files hold indices. What they stand for is looked up in a float32 copy of the codebooks, made
before the model is cast, so every reader unpacks the same latents.
Legend: C latent channels, h w cells of the latent grid.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from codec.architectures import codebook_sizes
from codec.codebooks import find_nearest
from codec.entropy.index_tables import Indices
from codec.header import MAX_CODES, Grid
from codec.latents import LatentsError

__all__ = ["Codes", "Indices", "codes_of"]


@dataclass(frozen=True, slots=True)
class Codes:
    """The codebooks of one model.

    Attributes:
        sizes: Number of codes of each, coarse to fine.
        strides: Side of the square of latent cells that an index of each stands for.
        lookup: Takes int64 indices (N, rows, columns) of each; gives raw latents (N, C, h, w).
        search: The inverse; latents that are no codes get the nearest.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    lookup: Callable[[Sequence[Tensor]], Tensor]
    search: Callable[[Tensor], tuple[Tensor, ...]]

    def grids(self, rows: int, columns: int) -> tuple[Grid, ...]:
        """Returns what a file's header says of the indices of (C, rows, columns) latents.

        Raises:
            LatentsError: A codebook has more codes than files know, or the coarsest codes do not
                fit into the grid.
        """
        if max(self.sizes) > MAX_CODES:
            raise LatentsError(
                f"found a codebook of {max(self.sizes)} codes, expected at most {MAX_CODES} in a "
                "file; train with fewer"
            )
        stride = max(self.strides)
        if rows % stride or columns % stride:
            raise LatentsError(
                f"found latents of {columns}x{rows} cells, expected sides that are multiples of "
                f"{stride}, as the model's own are"
            )
        return tuple(
            Grid(size, rows // stride, columns // stride)
            for size, stride in zip(self.sizes, self.strides, strict=True)
        )

    def to_latents(self, indices: Indices) -> NDArray[np.float32]:
        """Returns the raw latents (C, h, w) that indices stand for."""
        latents = self.lookup([torch.from_numpy(grid.astype(np.int64))[None] for grid in indices])
        found: NDArray[np.float32] = latents[0].contiguous().numpy()
        return found

    def to_indices(self, raw_latents: NDArray[np.float32]) -> Indices:
        """Returns the indices of the codes that raw latents (C, h, w) are, or are nearest to."""
        found = self.search(torch.from_numpy(raw_latents)[None])
        return tuple(grid[0].to(torch.int32).numpy() for grid in found)


def codes_of(model: Any) -> Codes | None:
    """Returns the codes of an autoencoder; None for one with continuous latents."""
    sizes = codebook_sizes(model.config)
    if not sizes:
        return None
    if "num_vq_embeddings" in model.config:  # VQModel
        return _vq_codes(
            model.quantize.embedding.weight.detach().to("cpu", torch.float32, copy=True)
        )
    bottleneck = copy.deepcopy(model.bottleneck).to("cpu", torch.float32).requires_grad_(False)
    strides = tuple(2**level for level in range(len(sizes)))[::-1]
    return Codes(sizes, strides, bottleneck.indices_to_latents, bottleneck.latents_to_indices)


def _vq_codes(table: Tensor) -> Codes:
    """The codes of a VQModel: one codebook, float32 (K, C)."""

    def lookup(indices: Sequence[Tensor]) -> Tensor:
        (grid,) = indices
        return rearrange(table[grid], "n h w c -> n c h w")

    def search(latents: Tensor) -> tuple[Tensor]:
        rows, columns = latents.shape[-2:]
        found = find_nearest(rearrange(latents, "n c h w -> (n h w) c"), table)
        return (rearrange(found, "(n h w) -> n h w", h=rows, w=columns),)

    return Codes((len(table),), (1,), lookup, search)
