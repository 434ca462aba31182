"""Held-out figures while training: PSNR, LPIPS, and the order-0 rate of quantised latents."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codec import images
from codec.autoencoder import LatentAutoencoder
from train.config import TrainConfig
from train.data import DataError, read_names

BATCH = 8
FALLBACK_STEP = 0.4


class Validation:
    """Centre crops of held-out images, measured as 8-bit pixels.

    Args:
        crops: uint8 (N, 3, S, S).
        step: quantiser step applied to the raw latents.
        perceptual: LPIPS, or None to leave it out.
    """

    def __init__(self, crops: Tensor, step: float, perceptual: nn.Module | None) -> None:
        self.crops = crops
        self.step = step
        self.perceptual = perceptual

    @torch.no_grad()
    def measure(self, model: LatentAutoencoder, accelerator: Accelerator) -> dict[str, float]:
        """PSNR in dB and LPIPS from quantised latents, and their per-image order-0 rate in bpp."""
        sums = {"val/psnr": 0.0, "val/rate_bpp": 0.0}
        for part in self.crops.split(BATCH):
            x = part.to(accelerator.device).float() / 127.5 - 1
            with accelerator.autocast():
                latents = model.encode(x).latent_dist.mode().float()
                symbols = torch.round(latents / self.step)
                output = model.decode(symbols * self.step).sample.float()
            output = torch.round((output.clamp(-1, 1) + 1) * 127.5)
            error = (output - part.to(output.device)).square().mean((1, 2, 3))
            sums["val/psnr"] += float((10 * torch.log10(255**2 / error)).sum())
            bits = sum(order0_bits(image.cpu().numpy()) for image in symbols)
            sums["val/rate_bpp"] += bits / math.prod(x.shape[-2:])
            if self.perceptual is not None:
                distance = self.perceptual(output / 127.5 - 1, x)
                name = f"val/lpips_{getattr(self.perceptual, 'net_name', 'unknown')}"
                sums[name] = sums.get(name, 0.0) + float(distance.sum())
        return {name: total / len(self.crops) for name, total in sums.items()}


def order0_bits(symbols: np.ndarray) -> float:
    """Order-0 entropy of one image's symbols (C, h, w), channel by channel, in bits."""
    bits = 0.0
    for channel in symbols:
        _, counts = np.unique(channel, return_counts=True)
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits


def make_validation(
    config: TrainConfig, posterior_std: float | None, perceptual: nn.Module | None
) -> Validation | None:
    """The held-out set that the configuration names, or None; the step is that of the noise."""
    run = config.run
    if run.validation_folder is None:
        return None
    files: Sequence[Path] = images.find([run.validation_folder])
    if run.validation_names is not None:
        names = read_names(run.validation_names)
        files = [path for path in files if path.name in names]
    if not files:
        raise DataError(
            f"found no held-out image in {run.validation_folder}: check run.validation_folder and "
            "run.validation_names"
        )
    spread = np.linspace(0, len(files) - 1, min(run.validation_images, len(files))).round()
    side = 2 * config.data.crop_size
    crops = [_centre(images.load(files[int(i)]).pixels, side) for i in spread]
    step = FALLBACK_STEP if posterior_std is None else posterior_std * math.sqrt(12)
    return Validation(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), step, perceptual)


def _centre(pixels: np.ndarray, side: int) -> np.ndarray:
    """The centre square of a side, edges repeated where the image is smaller."""
    height, width = pixels.shape[:2]
    rows, columns = max(0, side - height), max(0, side - width)
    padded = np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge")
    top, left = (padded.shape[0] - side) // 2, (padded.shape[1] - side) // 2
    return padded[top : top + side, left : left + side]
