"""Random crops of codes that were found once; see `train.entropy.dataset`.

Legend: B batch, L codebooks, S side of a crop in cells of the finest grid.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from codec.entropy.index_tables import Indices
from train.entropy.dataset import CROP, EncodedDataset
from train.entropy.frozen_codes import FrozenCodes, Planes
from train.entropy.sections import IndexConfig
from train.samples.sources import DataError


class IndexBatch(NamedTuple):
    """Crops of one process and step.

    Attributes:
        planes: int64 (B, L, S, S) indices, coarse to fine, each repeated to the finest grid.
    """

    planes: Tensor

    @property
    def num_symbols(self) -> int:
        """Indices of all crops; each codebook's grid has half of the side of the next one's."""
        count, levels, rows, columns = self.planes.shape
        return sum(count * (rows >> level) * (columns >> level) for level in range(levels))


class IndexDataset(EncodedDataset):
    """Random crops of codes; see `EncodedDataset`."""

    config: IndexConfig
    latents: list[Planes]

    def __init__(self, config: IndexConfig, frozen: FrozenCodes, accelerator: Accelerator) -> None:
        self._stride = max(frozen.codes.strides)
        if config.data.latent_crop % self._stride:
            raise DataError(
                f"found data.latent_crop={config.data.latent_crop}, expected a multiple of "
                f"{self._stride}, as the coarsest codes are so many cells wide"
            )
        super().__init__(config, frozen, accelerator)
        self._frozen = frozen

    def images(self) -> list[Indices]:
        """Indices of all images."""
        return [self._frozen.indices(planes) for planes in self.latents]

    def __getitem__(self, index: int) -> Planes:
        """Sample number `index`: its crop (L, S, S)."""
        rng = np.random.default_rng((self.config.run.seed, index, CROP))
        return self.crop(index, rng, self._stride).astype(np.int64)

    def batch(self, indices: Iterable[int]) -> IndexBatch:
        """Several samples in a tensor."""
        return IndexBatch(torch.from_numpy(np.stack([self[index] for index in indices])))
