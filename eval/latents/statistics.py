"""Mean, deviation and correlation of latent channels over a whole dataset, in one pass.

Shapes: C latent channels, h w latent grid.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """What a model's config.json carries, and how far to trust it.

    Attributes:
        mean: of each channel.
        std: of each channel.
        scaling_factor: 1 / standard deviation over all channels together; inf if that is 0.
        shift_factor: mean over all channels together.
        count: latent positions measured, per channel.
        num_images: images they came from.
        mean_error: standard error of each mean; None for fewer than two images.
        std_error: standard error of each deviation, likewise.
        correlation: between channels, C rows of C numbers in -1..1; 0 beside a constant channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling_factor: float
    shift_factor: float
    count: int
    num_images: int
    mean_error: tuple[float, ...] | None
    std_error: tuple[float, ...] | None
    correlation: tuple[tuple[float, ...], ...]

    @property
    def largest_correlation(self) -> float:
        """The largest absolute correlation of two different channels; 0 for one channel."""
        pairs = np.abs(np.asarray(self.correlation))
        np.fill_diagonal(pairs, 0.0)
        return float(pairs.max())


class StreamingStatistics:
    """Merges images one at a time (Chan, Golub and LeVeque 1979), in float64.

    The standard errors take an image as the unit that was drawn: positions within one are alike.
    They are those of a ratio of sums over images (Cochran 1977, section 6.4), from second moments
    about 0, which float64 holds to 8 digits while |mean| is below 100 deviations.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.num_images = 0
        self.mean = np.zeros(channels)
        self.comoments = np.zeros((channels, channels))  # sums of products of deviations
        self._square_counts = 0.0
        # Sums over images of n^2 times a, q, a^2, q^2 and a q, where n counts an image's
        # positions, a is their mean value and q their mean square.
        self._moments = np.zeros((5, channels))

    def update(self, latents: NDArray[np.floating]) -> None:
        """Add the latents (C, h, w) of one image."""
        values = latents.reshape(len(self.mean), -1).astype(np.float64)
        count, mean = values.shape[1], values.mean(axis=1)
        deviations = values - mean[:, None]
        self._add(count, mean, deviations @ deviations.T)
        square = np.square(values).mean(axis=1)
        self.num_images += 1
        self._square_counts += count**2
        products = (mean, square, mean**2, square**2, mean * square)
        self._moments += count**2 * np.stack(products)

    def merge(self, other: "StreamingStatistics") -> None:
        """Add what another one has seen."""
        self._add(other.count, other.mean, other.comoments)
        self.num_images += other.num_images
        self._square_counts += other._square_counts
        self._moments += other._moments

    def finish(self) -> LatentStatistics:
        """The figures over everything seen."""
        assert self.count > 0
        variance = np.diag(self.comoments) / self.count
        std = np.sqrt(variance)
        mean = float(self.mean.mean())
        overall = math.sqrt(float(np.mean(variance + (self.mean - mean) ** 2)))
        errors = self._errors(variance) if self.num_images > 1 else None
        return LatentStatistics(
            mean=tuple(map(float, self.mean)),
            std=tuple(map(float, std)),
            scaling_factor=1 / overall if overall > 0 else math.inf,
            shift_factor=mean,
            count=self.count,
            num_images=self.num_images,
            mean_error=None if errors is None else tuple(map(float, errors[0])),
            std_error=None if errors is None else tuple(map(float, errors[1])),
            correlation=self._correlation(std),
        )

    def _add(self, count: int, mean: NDArray[np.float64], comoments: NDArray[np.float64]) -> None:
        total = self.count + count
        if total == 0:
            return
        delta = mean - self.mean
        self.comoments += comoments + np.outer(delta, delta) * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = total

    def _errors(
        self, variance: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard errors of mean and deviation.

        An image moves the mean by n (a - m) / count and the variance by n (v - s^2) / count, with
        v = q - 2 m a + m^2; the deviation moves by the variance's share over 2 s.
        """
        n2, m = self._square_counts, self.mean
        a, q, aa, qq, aq = self._moments
        bessel = self.num_images / (self.num_images - 1)
        of_mean = aa - 2 * m * a + m**2 * n2
        offset = m**2 - variance
        of_variance = (
            qq + 4 * m**2 * aa - 4 * m * aq + 2 * offset * (q - 2 * m * a) + offset**2 * n2
        )
        mean_error, variance_error = (
            np.sqrt(bessel * np.maximum(part, 0.0)) / self.count for part in (of_mean, of_variance)
        )
        std = np.sqrt(variance)
        safe = np.where(std > 0, std, 1.0)
        return mean_error, np.where(std > 0, variance_error / (2 * safe), 0.0)

    def _correlation(self, std: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
        scale = np.where(std > 0, 1 / np.where(std > 0, std, 1.0), 0.0)
        matrix = np.clip(self.comoments / self.count * np.outer(scale, scale), -1.0, 1.0)
        np.fill_diagonal(matrix, 1.0)
        return tuple(tuple(map(float, row)) for row in matrix)
