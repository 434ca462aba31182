"""The real images nearest to samples: whether a prior repeats what it was trained on.

Candidates come from the cosine of features, less their mean over the training images; among the
best, LPIPS(squeeze) decides. A sample is held against training images as it is and mirrored, since
priors are trained on mirrored copies too.

Legend: N images, M candidates, D features, H W pixels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.images import Pixels, to_unit
from eval.distribution.features import Features, extract
from eval.distribution.image_sets import ImageSet
from eval.lpips import PerceptualDistance

CANDIDATES = 16  # M, of the image as it is and of its mirror image each
SHOWN = 2  # nearest images that are kept


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A real image beside a sample.

    Attributes:
        index: of the real image in its set.
        source: its path there.
        lpips: distance of the two, of the mirrored sample if that is less.
        is_mirrored: whether it is.
    """

    index: int
    source: str
    lpips: float
    is_mirrored: bool


def nearest(
    images: Iterable[Pixels],
    real: ImageSet,
    real_features: Features,
    network: PerceptualDistance,
    advance: Callable[[], None] = lambda: None,
) -> list[tuple[Neighbour, ...]]:
    """Return the nearest real images of each image, nearest first.

    Args:
        images: uint8 (H, W, 3), of the size of the real ones.
        real: the set to look in.
        real_features: of that set, (N, D).
        network: LPIPS(squeeze).
        advance: is called after each image.
    """
    centre = real_features.mean(axis=0)
    directions = _unit(real_features - centre)
    found = []
    for pixels in images:
        views = (pixels, np.ascontiguousarray(pixels[:, ::-1]))
        similar = _unit(extract(views, network) - centre) @ directions.T  # (2, N)
        best: dict[int, Neighbour] = {}
        for is_mirrored, (view, row) in enumerate(zip(views, similar, strict=True)):
            candidates = np.argsort(-row, kind="stable")[:CANDIDATES].tolist()
            distances = lpips_to(view, (real.load(index) for index in candidates), network)
            for index, distance in zip(candidates, distances, strict=True):
                if index not in best or distance < best[index].lpips:
                    source = real.items[index].source
                    best[index] = Neighbour(index, source, distance, bool(is_mirrored))
        ranked = sorted(best.values(), key=lambda neighbour: neighbour.lpips)
        found.append(tuple(ranked[:SHOWN]))
        advance()
    return found


@torch.inference_mode()
def lpips_to(image: Pixels, others: Iterable[Pixels], network: PerceptualDistance) -> list[float]:
    """Return LPIPS of an image to each of others of its size, all uint8 (H, W, 3)."""
    first = _tensor(image, network)
    return [float(network(_tensor(other, network), first)) for other in others]


def _tensor(pixels: Pixels, network: PerceptualDistance) -> Tensor:
    device = next(network.parameters()).device
    x = torch.from_numpy(to_unit(pixels))[None].to(device)  # (1, 3, H, W)
    return x.contiguous(memory_format=torch.channels_last)


def _unit(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Features = features / np.maximum(length, 1e-12)
    return scaled
