"""What stands between encoder and decoder: for now the diagonal Gaussian (KL) bottleneck.

A bottleneck says how many channels it wants from the encoder and turns them into a posterior. The
posterior is diffusers' own `DiagonalGaussianDistribution`, which every pipeline knows.
"""

import math

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn


class GaussianBottleneck(nn.Module):
    """A diagonal Gaussian posterior over latents (B, C, h, w).

    With `posterior_std` the standard deviation is that constant: the encoder gives means alone,
    and the noise of `sample()` stands for the quantiser of the files (a uniform step of sqrt(12)
    times the deviation has the same variance). With None the encoder gives means and
    log-variances, as in Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def __init__(self, latent_channels: int, posterior_std: float | None) -> None:
        super().__init__()
        if posterior_std is not None and not posterior_std > 0:
            raise ValueError(
                f"found posterior_std {posterior_std}, expected a positive number, or None to "
                "learn it"
            )
        self.latent_channels = latent_channels
        self.posterior_std = posterior_std

    @property
    def in_channels(self) -> int:
        """Channels that the encoder must give."""
        return self.latent_channels * (1 if self.posterior_std else 2)

    def forward(self, h: Tensor) -> DiagonalGaussianDistribution:
        """Turn encoder features (B, in_channels, h, w) into the posterior."""
        if self.posterior_std is not None:
            log_variance = torch.full_like(h, 2 * math.log(self.posterior_std))
            h = torch.cat([h, log_variance], dim=1)
        return DiagonalGaussianDistribution(h)
