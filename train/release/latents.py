"""Latents and codes of the training images, measured for an export; the model never changes."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from codec import backbone, images
from codec.architectures import latent_channels
from codec.codes import Codes
from codec.console import print_warning
from codec.device import choose_device, choose_dtype
from codec.entropy.index_tables import Indices
from eval.latents.statistics import LatentStatistics, StreamingStatistics
from train.data import CropDataset, to_unit
from train.samples.sources import DataError, ImageSource

NUM_IMAGES = 256
"""Whole images, or crops, that are measured."""
BATCH = 8


@torch.no_grad()
def measure_images(
    model: Any, source: ImageSource, max_side: int | None = None
) -> tuple[list[NDArray[np.float32]], LatentStatistics]:
    """Raw latents float32 (C, h, w) of images spread evenly over a source; and statistics.

    Args:
        model: any autoencoder.
        source: the images.
        max_side: take the middle of sides that are longer, in pixels; None for whole images.

    Raises:
        DataError: none of the images can be read; single broken ones are left out.
    """
    fast, statistics = _to_fastest(model), StreamingStatistics(latent_channels(model.config))
    latents = []
    for pixels in _spread(model, source, max_side):
        latents.append(backbone.encode_pixels(fast, pixels))
        statistics.update(latents[-1])
    return latents, statistics.finish()


@torch.no_grad()
def measure_codes(
    model: Any, codes: Codes, source: ImageSource, max_side: int | None = None
) -> tuple[list[Indices], LatentStatistics]:
    """Indices of images spread evenly over a source; and statistics of their codes.

    Args:
        model: an autoencoder with codes.
        codes: its codebooks.
        source: as for `measure_images`.
        max_side: likewise.

    Raises:
        DataError: as for `measure_images`.
    """
    fast, statistics = _to_fastest(model), StreamingStatistics(latent_channels(model.config))
    indices = []
    for pixels in _spread(model, source, max_side):
        indices.append(backbone.encode_indices(fast, codes, pixels))
        statistics.update(codes.to_latents(indices[-1]))
    return indices, statistics.finish()


def _spread(model: Any, source: ImageSource, max_side: int | None) -> Iterator[images.Pixels]:
    """Yields up to `NUM_IMAGES` images with sides that a model takes."""
    multiple = getattr(model, "multiple", backbone.downscale_factor(model))
    spread = np.linspace(0, len(source) - 1, min(NUM_IMAGES, len(source))).round().astype(int)
    num_read = 0
    for number in track(spread.tolist(), "latents of training images", transient=True):
        try:
            pixels = images.pad(_middle(source.load(number), max_side), multiple)
        except images.ImageError as error:
            print_warning(f"left out: {error}")
            continue
        num_read += 1
        yield pixels
    if not num_read:
        raise DataError(f"none of {len(spread)} images can be read: check {source.name}")


def _middle(pixels: images.Pixels, max_side: int | None) -> images.Pixels:
    """The middle of an image whose sides are longer than allowed."""
    top, left = (max(0, side - (max_side or side)) // 2 for side in pixels.shape[:2])
    return pixels[
        top : top + (max_side or len(pixels)), left : left + (max_side or pixels.shape[1])
    ]


@torch.no_grad()
def measure_crops(model: Any, dataset: CropDataset) -> LatentStatistics:
    """Statistics of raw latents of crops as they are trained on, with their labels."""
    model = _to_fastest(model)
    statistics = StreamingStatistics(model.config.latent_channels)
    reference = next(model.parameters())
    is_conditional = model.config.get("num_classes") is not None
    for start in track(range(0, NUM_IMAGES, BATCH), "latents of crops", transient=True):
        batch = dataset.batch(range(start, start + BATCH))
        x = to_unit(batch.pixels, reference.device).to(reference.dtype)
        labels = {"class_labels": batch.labels.to(x.device)} if is_conditional else {}
        encoded = model.encode(x, **labels)
        posterior = getattr(encoded, "latent_dist", None)
        latents = encoded.latents if posterior is None else posterior.mode()
        for image in latents.float().cpu().numpy():
            statistics.update(image)
    return statistics.finish()


def _to_fastest(model: Any) -> Any:
    """A copy where and as it runs fastest: other numbers than those that are exported."""
    device = choose_device(None)
    upcast = bool(model.config.get("force_upcast", False))
    fast = copy.deepcopy(model).eval()
    nn.Module.to(fast, device, choose_dtype(device, None, force_upcast=upcast))
    nn.Module.to(fast, memory_format=torch.channels_last)
    return fast
