"""Held-out figures: what the codes of whole images cost under the model, and under simpler coders.

Every process measures its share of the images; sums are merged, the same on all.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_tables import Indices
from eval.latents.entropy import order0_bits
from train.entropy.frozen_codes import Planes, split_planes
from train.entropy.index_model import IndexModel


class IndexValidation:
    """Measures bits of the codes of held-out images.

    Args:
        planes: codes (L, h, w) of the images.
        strides: of the codebooks.
        coders: others to compare with, by the name that their figures get.
    """

    def __init__(
        self, planes: Sequence[Planes], strides: Sequence[int], coders: Mapping[str, IndexCoder]
    ) -> None:
        self.planes = planes
        self.strides = tuple(strides)
        self.coders = dict(coders)
        self.num_symbols = sum(grid.size for image in planes for grid in self._grids(image))
        self._others: dict[str, float] | None = None

    @torch.no_grad()
    def measure(self, model: IndexModel, accelerator: Accelerator) -> dict[str, float]:
        """Figures by logged name, in bits an index over all images; call it on every process.

        `val/bits_per_symbol` of the model, and with another coder's name in front of `bits`.
        `order0` is the entropy of each image's own indices, codebook by codebook.
        """
        share = self.planes[accelerator.process_index :: accelerator.num_processes]
        device = next(model.parameters()).device
        bits = 0.0
        for image in share:
            whole = torch.from_numpy(image.astype(np.int64))[None].to(device)
            bits += float(model(whole).sum())
        if self._others is None:  # they never change
            self._others = self._figures(self._measure_others(share))
        return {**self._figures({"": bits}), **self._others}

    def _measure_others(self, share: Sequence[Planes]) -> dict[str, float]:
        """Bits of this process's images by coder."""
        sums: dict[str, float] = defaultdict(float)
        for image in share:
            grids = self._grids(image)
            sums["order0_"] += sum(order0_bits(grid[None]) for grid in grids)
            for name, coder in self.coders.items():
                sums[f"{name}_"] += coder.estimate_bits(grids)
        return dict(sums)

    def _figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits an index over all processes, by logged name."""
        parts = gather_object([dict(sums)])
        names = sorted({name for part in parts for name in part})
        return {
            f"val/{name}bits_per_symbol": math.fsum(part.get(name, 0.0) for part in parts)
            / self.num_symbols
            for name in names
        }

    def _grids(self, image: Planes) -> Indices:
        return split_planes(image, self.strides)
