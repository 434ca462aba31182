"""Mean and standard deviation of latent channels over a whole dataset, in one pass."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """What a model's config.json carries.

    Attributes:
        mean: of each channel.
        std: of each channel.
        scaling_factor: 1 / standard deviation over all channels together.
        shift_factor: mean over all channels together.
        count: latent positions measured, per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling_factor: float
    shift_factor: float
    count: int


class StreamingStatistics:
    """Merges batches one at a time (Chan, Golub and LeVeque 1979), in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)

    def update(self, latents: np.ndarray) -> None:
        """Add the latents (C, h, w) of one image."""
        values = latents.reshape(len(self.mean), -1).astype(np.float64)
        count, mean = values.shape[1], values.mean(axis=1)
        delta, total = mean - self.mean, self.count + values.shape[1]
        between = delta**2 * self.count * count / total
        self.squares += ((values - mean[:, None]) ** 2).sum(axis=1) + between
        self.mean += delta * count / total
        self.count = total

    def finish(self) -> LatentStatistics:
        """The figures over everything seen."""
        assert self.count > 0
        variance = self.squares / self.count
        mean = float(self.mean.mean())
        overall = float(np.mean(variance + (self.mean - mean) ** 2))
        return LatentStatistics(
            mean=tuple(map(float, self.mean)),
            std=tuple(map(float, np.sqrt(variance))),
            scaling_factor=overall**-0.5,
            shift_factor=mean,
            count=self.count,
        )
