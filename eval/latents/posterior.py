"""What a Gaussian posterior carries: its KL divergence channel by channel, and active units.

Shapes: B batch, C latent channels, h w latent grid. Rates in bits.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.latents.statistics import LatentStatistics

ACTIVE_VARIANCE = 0.01
"""Burda et al., arXiv:1509.00519, section 5.2: variance of the posterior mean over data."""
KL_EDGES = (0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
"""Bits an element; fixed, so that histograms of parts of a set add up."""


@dataclass(frozen=True, slots=True)
class PosteriorRate:
    """KL(q(z|x) || N(0, I)) over a set of images.

    Attributes:
        channel_bits: mean of each channel, in bits an element.
        histogram: for each channel, how many elements lie between consecutive `KL_EDGES`.
        image_bits: mean over images of the sum over all elements.
        num_images: of the set.
    """

    channel_bits: tuple[float, ...]
    histogram: tuple[tuple[int, ...], ...]
    image_bits: float
    num_images: int

    @property
    def mean_bits(self) -> float:
        """Mean over elements, in bits."""
        return float(np.mean(self.channel_bits))


class PosteriorMeter:
    """Adds up the KL divergence of batches, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0  # elements of each channel
        self.num_images = 0
        self.bits = np.zeros(channels)
        self.histogram = np.zeros((channels, len(KL_EDGES) - 1), dtype=np.int64)

    def update(self, mean: Tensor, logvar: Tensor) -> None:
        """Add posteriors of a batch, (B, C, h, w) each."""
        nats = _kl_elements(mean.detach().cpu().double(), logvar.detach().cpu().double())
        bits = (nats / math.log(2)).movedim(1, 0).flatten(1).numpy()  # (C, B h w)
        places = np.searchsorted(KL_EDGES[1:-1], bits, side="right")
        for row, place in zip(self.histogram, places, strict=True):
            row += np.bincount(place, minlength=len(row))
        self.bits += bits.sum(axis=1)
        self.count += bits.shape[1]
        self.num_images += len(mean)

    def merge(self, other: "PosteriorMeter") -> None:
        """Add what another one has seen."""
        self.count += other.count
        self.num_images += other.num_images
        self.bits += other.bits
        self.histogram += other.histogram

    def finish(self) -> PosteriorRate:
        """The figures over everything seen."""
        assert self.count > 0
        return PosteriorRate(
            channel_bits=tuple(map(float, self.bits / self.count)),
            histogram=tuple(tuple(map(int, row)) for row in self.histogram),
            image_bits=float(self.bits.sum() / self.num_images),
            num_images=self.num_images,
        )


def active_units(statistics: LatentStatistics) -> tuple[bool, ...]:
    """Which channels say something about the image: their posterior mean varies over data.

    Args:
        statistics: of posterior means, over the positions and images of a set.
    """
    return tuple(std**2 > ACTIVE_VARIANCE for std in statistics.std)


def _kl_elements(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL to a unit Gaussian in nats, element by element (arXiv:1312.6114, appendix B)."""
    nats = 0.5 * (mean.square() + torch.expm1(logvar) - logvar)
    return nats.clamp(min=0.0)  # rounding alone takes it below
