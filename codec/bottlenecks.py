"""What stands between encoder and decoder: for now the diagonal Gaussian (KL) bottleneck.

A bottleneck says how many channels it wants from the encoder and turns them into a posterior. The
posterior has the interface of diffusers' `DiagonalGaussianDistribution`, which every pipeline
knows. That class itself comes with all of diffusers' networks: importing it takes a second and
90 MB of every cold start.
"""

import math

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn


class DiagonalGaussian:
    """A diagonal Gaussian over latents; arXiv:1312.6114.

    Attributes:
        parameters: (B, 2 * C, h, w), means and log-variances as they came from the encoder.
        mean: (B, C, h, w).
        logvar: natural logarithm of the variance, clamped to -30..20, (B, C, h, w).
        std: (B, C, h, w).
        var: (B, C, h, w).
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """A random draw (B, C, h, w); a list of generators gives each image its own."""
        shape, like = self.mean.shape, self.parameters
        noise: Tensor = randn_tensor(shape, generator, device=like.device, dtype=like.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean (B, C, h, w)."""
        return self.mean

    def kl(self, other: "DiagonalGaussian | None" = None) -> Tensor:
        """KL(self || other) in nats for each image, (B,); other is N(0, I) by default."""
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean).square() / other.var
            terms = distance + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of `sample` in nats, summed over `dims`."""
        distance = (sample - self.mean).square() / self.var
        return 0.5 * (math.log(2.0 * math.pi) + self.logvar + distance).sum(dim=dims)


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

    def forward(self, h: Tensor) -> DiagonalGaussian:
        """Turn encoder features (B, in_channels, h, w) into the posterior."""
        if self.posterior_std is not None:
            log_variance = torch.full_like(h, 2 * math.log(self.posterior_std))
            h = torch.cat([h, log_variance], dim=1)
        return DiagonalGaussian(h)
