"""Random crops of latents that were encoded once; see `train.entropy.dataset`.

Transposition and quantiser step of sample i, too, follow from (seed, i) alone.

Legend: B batch, C latent channels, S side of a crop in cells.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from codec import quantizer
from codec.bitstream import STEPS_PER_UNIT
from train.entropy.dataset import CROP, EncodedDataset
from train.entropy.frozen import FrozenCodec, Latents
from train.entropy.sections import EntropyConfig

MEASURED = 1024
"""Images that the channels' deviations are measured on."""


class LatentBatch(NamedTuple):
    """Crops of one process and step.

    Attributes:
        latents: float32 (B, C, S, S) raw latents, rounded to whole steps as in files.
        steps: float32 (B,) in units of raw latents.
    """

    latents: Tensor
    steps: Tensor

    @property
    def num_symbols(self) -> int:
        """Of all crops."""
        return self.latents.numel()


class LatentDataset(EncodedDataset):
    """Random crops of latents; see `EncodedDataset`.

    Attributes:
        deviations: of each channel, in raw latent units.
        quality_50_step: quantiser step of quality 50, likewise.
    """

    config: EntropyConfig
    latents: list[Latents]

    def __init__(
        self, config: EntropyConfig, frozen: FrozenCodec, accelerator: Accelerator
    ) -> None:
        super().__init__(config, frozen, accelerator)
        measured = quantizer.measure_deviations(self.latents[:MEASURED])
        self.deviations = tuple(units / STEPS_PER_UNIT for units in measured)
        self.quality_50_step = frozen.quality_50_step(self.deviations)

    def __getitem__(self, index: int) -> tuple[Latents, float]:
        """Sample number `index`: its crop (C, S, S), and the step it is rounded to."""
        config = self.config
        rng = np.random.default_rng((config.run.seed, index, CROP))
        crop = self.crop(index, rng)
        quality = float(rng.uniform(config.entropy.min_quality, config.entropy.max_quality))
        if config.data.transpose and rng.random() < 0.5:
            crop = crop.transpose(0, 2, 1)
        step = quantizer.step_from_quality(quality, self.quality_50_step)
        return quantizer.dequantize(quantizer.quantize(crop, step), step), step / STEPS_PER_UNIT

    def batch(self, indices: Iterable[int]) -> LatentBatch:
        """Several samples in tensors."""
        crops, steps = zip(*map(self.__getitem__, indices), strict=True)
        return LatentBatch(torch.from_numpy(np.stack(crops)), torch.tensor(steps))
