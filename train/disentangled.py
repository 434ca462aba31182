"""Whether the latents of a run on rendered images stand for the factors that made them."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from codec.backbone import encode_raw
from eval.latents.disentanglement import mutual_information_gap
from train.data import to_unit
from train.samples.factors import FactorImages
from train.sections import TrainConfig

IMAGES, BATCH = 2048, 64


def has_factors(config: TrainConfig) -> bool:
    """Whether a run has known factors, and one vector of latents an image to look for them in."""
    side = 2 ** (len(config.model.block_out_channels) - 1)
    return config.data.factors > 0 and side == config.data.crop_size


@torch.no_grad()
def disentanglement_figures(
    model: Any, config: TrainConfig, accelerator: Accelerator
) -> dict[str, float]:
    """`health/mig`: the mutual information gap, 0 to 1, over images that were not trained on.

    The same on every process.
    """
    source = FactorImages(IMAGES, config.data.crop_size, start=config.data.factors)
    means = []
    for start in range(0, IMAGES, BATCH):
        pixels = np.stack([source.load(i) for i in range(start, start + BATCH)])
        levels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        with accelerator.autocast():
            latents = encode_raw(model, to_unit(levels, accelerator.device))
        means.append(latents.float().flatten(1).cpu().numpy())
    values = source.values(np.arange(IMAGES))
    return {"health/mig": mutual_information_gap(np.concatenate(means), values).gap}
