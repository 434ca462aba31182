"""Bounds of the likelihood of 8-bit images under a variational autoencoder.

The evidence lower bound (arXiv:1312.6114) and the importance-weighted one (IWAE,
arXiv:1509.00519, equation 8), both as upper bounds of the code length in bits per dimension.

Shapes: K samples, B batch, C latent channels, h w latent grid, H W pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.latents.likelihood import Likelihood, log_probability


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds of the code length over a set; the tighter one is never above the other.

    Attributes:
        elbo_bits_per_dim: negative evidence lower bound.
        iwae_bits_per_dim: negative importance-weighted bound.
        scale: of the likelihood, in 8-bit levels.
        likelihood: density that was integrated over the 8-bit levels.
        num_samples: K.
        num_images: of the set.
    """

    elbo_bits_per_dim: float
    iwae_bits_per_dim: float
    scale: float
    likelihood: Likelihood
    num_samples: int
    num_images: int


class BoundMeter:
    """Adds up the bounds of images.

    Args:
        num_dims: values of an image, 3 H W.
        scale: of the likelihood, in 8-bit levels.
        likelihood: its density.
        num_samples: K.
    """

    def __init__(self, num_dims: int, scale: float, likelihood: Likelihood, num_samples: int):
        self.num_dims = num_dims
        self.scale = scale
        self.likelihood: Likelihood = likelihood
        self.num_samples = num_samples
        self.num_images = 0
        self.elbo = 0.0  # sums over images, nats
        self.iwae = 0.0

    def update(self, log_weights: Tensor) -> None:
        """Add images by their log-weights (K, B) in nats, from `log_weights`."""
        assert len(log_weights) == self.num_samples
        log_weights = log_weights.double()
        self.elbo += float(log_weights.mean(dim=0).sum())
        iwae = torch.logsumexp(log_weights, dim=0) - math.log(self.num_samples)
        self.iwae += float(iwae.sum())
        self.num_images += log_weights.shape[1]

    def merge(self, other: "BoundMeter") -> None:
        """Add what another one has seen, under the same likelihood."""
        assert (self.scale, self.num_samples) == (other.scale, other.num_samples)
        self.num_images += other.num_images
        self.elbo += other.elbo
        self.iwae += other.iwae

    def finish(self) -> Bounds:
        """The figures over everything seen."""
        assert self.num_images > 0
        nats_to_bits = -1 / (self.num_images * self.num_dims * math.log(2))
        return Bounds(
            elbo_bits_per_dim=self.elbo * nats_to_bits,
            iwae_bits_per_dim=self.iwae * nats_to_bits,
            scale=self.scale,
            likelihood=self.likelihood,
            num_samples=self.num_samples,
            num_images=self.num_images,
        )


def log_weights(
    x: Tensor,
    mean: Tensor,
    logvar: Tensor,
    decode: Callable[[Tensor], Tensor],
    noise: Tensor,
    scale: float,
    likelihood: Likelihood,
) -> Tensor:
    """Logarithms of p(x|z) p(z) / q(z|x) for samples z of the posterior, (K, B) float64 in nats.

    Args:
        x: uint8 (B, 3, H, W).
        mean: (B, C, h, w) of the posterior.
        logvar: (B, C, h, w) its log-variance.
        decode: latents (B, C, h, w) to images (B, 3, H, W), about [-1, 1].
        noise: standard normal (K, B, C, h, w).
        scale: of the likelihood, in 8-bit levels.
        likelihood: its density.
    """
    rows = []
    for sample in noise.to(mean):  # sample by sample: memory for B images, not K times as many
        z = mean + torch.exp(0.5 * logvar) * sample
        fit = log_probability(x, decode(z), scale, likelihood).sum(dim=(1, 2, 3))
        rows.append(fit + latent_log_ratio(z, mean, logvar))
    return torch.stack(rows)


def latent_log_ratio(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log p(z) - log q(z|x) in nats, (B,) float64, for p(z) = N(0, I).

    Args:
        z: (B, ...) drawn from q.
        mean: of q, of the same shape.
        logvar: log-variance of q, of the same shape.
    """
    z, mean, logvar = z.double(), mean.double(), logvar.double()
    standard = (z - mean).square() / logvar.exp()
    return 0.5 * (standard + logvar - z.square()).flatten(1).sum(dim=1)
