"""The terms of the generator's loss, each on its own; `train.objective` weighs them.

Shapes: x and reconstruction (B, 3, H, W) in [-1, 1], H and W even; latents (B, C, h, w). Everything
in float32. All reconstruction terms but Charbonnier's are norms of linear maps of the error, so
they are computed from `reconstruction - x` alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.sections import LossConfig

NATS_PER_BIT = math.log(2.0)


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The weighted sum, and each term unweighted under its logged name."""

    total: Tensor
    terms: dict[str, Tensor]


def reconstruction_terms(
    x: Tensor, reconstruction: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """Each reconstruction term whose weight is positive, unweighted, under its logged name.

    L1 and L2 are always there, without a gradient where they have no weight: every log shows them.
    """
    error = reconstruction.float() - x.float()
    terms = {
        "loss/l1": (error if config.l1_weight > 0 else error.detach()).abs().mean(),
        "loss/l2": (error if config.l2_weight > 0 else error.detach()).square().mean(),
    }
    if config.charbonnier_weight > 0:
        terms["loss/charbonnier"] = charbonnier(error, config.charbonnier_epsilon)
    if config.multiscale_weight > 0:
        terms["loss/multiscale"] = multiscale_l1(error)
    if config.gradient_weight > 0:
        terms["loss/gradient"] = gradient_l1(error)
    if config.wavelet_weight > 0:
        terms["loss/wavelet"] = wavelet_l1(error)
    return terms


def charbonnier(error: Tensor, epsilon: float) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2), an L1 that is smooth at 0 (LapSRN, arXiv:1710.01992)."""
    return (error.square() + epsilon**2).sqrt().mean()


def multiscale_l1(error: Tensor) -> Tensor:
    """L1 of the error averaged over areas of 2x2, 4x4 and 8x8 pixels, mean of the three.

    Areas that the edge cuts are the mean of the pixels that they have.
    """
    scales = [
        F.avg_pool2d(error, side, ceil_mode=True, count_include_pad=False).abs().mean()
        for side in (2, 4, 8)
    ]
    return torch.stack(scales).mean()


def gradient_l1(error: Tensor) -> Tensor:
    """L1 of the error's differences between neighbours, mean of both directions."""
    horizontal, vertical = error.diff(dim=-1), error.diff(dim=-2)
    return 0.5 * (horizontal.abs().mean() + vertical.abs().mean())


def wavelet_l1(error: Tensor) -> Tensor:
    """L1 of the three detail bands of the error's orthonormal Haar transform (one level)."""
    assert error.shape[-2] % 2 == 0
    assert error.shape[-1] % 2 == 0
    top, bottom = error[..., 0::2, :], error[..., 1::2, :]
    a, b, c, d = top[..., 0::2], top[..., 1::2], bottom[..., 0::2], bottom[..., 1::2]
    bands = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d])
    return 0.5 * bands.abs().mean()


def with_logvar(reconstruction: Tensor, logvar: nn.Parameter) -> Tensor:
    """A reconstruction loss under a learned log-variance s: loss / exp(s) + s.

    As in latent diffusion (arXiv:2112.10752); its minimum over s is at s = log(loss).

    Args:
        reconstruction: scalar, the weighted sum of the reconstruction terms.
        logvar: scalar, s.
    """
    return reconstruction / logvar.exp() + logvar


def kl_per_channel(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each latent channel (C,), in nats per element.

    Mean over batch and positions; arXiv:1312.6114, appendix B.

    Args:
        mean: (B, C, h, w) of the posterior.
        logvar: (B, C, h, w), natural logarithm of its variance.
    """
    return _kl(mean, logvar).mean(dim=(0, 2, 3))


def charged_kl(mean: Tensor, logvar: Tensor, config: LossConfig, num_pixel_values: int) -> Tensor:
    """The KL term as the loss has it: free bits, then the configured reduction; scalar, in nats.

    Free bits are those of arXiv:1606.04934, equation 15: max(lambda, KL) for each channel, so that
    a channel below lambda gets no gradient. Taken for each image rather than for the mean of a
    batch, so that batches accumulated, or spread over processes, equal one large batch.

    Args:
        mean: (B, C, h, w) of the posterior.
        logvar: (B, C, h, w), natural logarithm of its variance.
        config: `free_bits`, in bits per element of a channel, and `kl_reduction`.
        num_pixel_values: values of one image, 3 * H * W.
    """
    channels = _kl(mean, logvar).mean(dim=(2, 3))  # (B, C)
    channels = channels.clamp(min=config.free_bits * NATS_PER_BIT)
    if config.kl_reduction == "latent":
        return channels.mean()
    positions = mean.shape[-2] * mean.shape[-1]
    return channels.sum(dim=1).mean() * positions / num_pixel_values


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of each latent element to a unit Gaussian, in nats, float32."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
