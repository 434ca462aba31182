"""Features of images for distances between sets: SqueezeNet 1.1, the backbone that LPIPS brings.

They are the activations of `features.12`, the last layer before SqueezeNet's head of ImageNet
classes, averaged over positions: the counterpart of the pooled Inception features of FID and KID,
with 512 numbers an image instead of 2048. Means over positions see what is in a picture and its
textures, not where it is. Distances over them are a project's own yardstick: no such figure is a
FID or KID, and none is to be compared with one.

Legend: N images, B batch, D features, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.images import Pixels, to_unit
from eval.lpips import MIN_SIDE, PerceptualDistance

FEATURES = "SqueezeNet 1.1 features.12, mean over positions"
NUM_FEATURES = 512  # D

Features = NDArray[np.float64]


@torch.inference_mode()
def extract(
    images: Iterable[Pixels],
    network: PerceptualDistance,
    *,
    batch_size: int = 16,
    advance: Callable[[], None] = lambda: None,
) -> Features:
    """Return the features (N, D) of 8-bit images, computed in float32.

    Args:
        images: uint8 (H, W, 3), sides of at least 32 pixels; those of one size in a row share
            batches.
        network: LPIPS(squeeze), whose backbone and input normalisation (torchvision's) are used.
        batch_size: B; larger ones change the last bits alone.
        advance: is called after each image.
    """
    assert network.net_name == "squeeze"
    device = next(network.parameters()).device
    parts = [np.zeros((0, NUM_FEATURES))]
    for batch in batches(images, batch_size):
        x = torch.from_numpy(np.stack([to_unit(pixels) for pixels in batch]))  # (B, 3, H, W)
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        parts.append(pooled(network, x).double().cpu().numpy())
        for _ in batch:
            advance()
    return np.concatenate(parts)


def pooled(network: PerceptualDistance, images: Tensor) -> Tensor:
    """Return the features (B, D) of images (B, 3, H, W) in [-1, 1]."""
    # LPIPS cuts the backbone into seven slices; the last ends with features.12.
    last: Tensor = network.features(network.scaling(images))[-1]
    return last.mean(dim=(2, 3))


def batches(images: Iterable[Pixels], batch_size: int) -> Iterator[list[Pixels]]:
    """Yield images in order, those of a batch of one size.

    Raises:
        ValueError: one is too small for the backbone.
    """
    for (height, width), same in groupby(images, key=lambda pixels: pixels.shape[:2]):
        if min(height, width) < MIN_SIDE:
            raise ValueError(
                f"found an image of {width}x{height} pixels, expected sides of at least {MIN_SIDE}"
            )
        while batch := list(islice(same, batch_size)):
            yield batch
