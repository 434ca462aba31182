"""The terms of the generator's loss, each on its own and weighted in one place.

Shapes: x and reconstruction (B, 3, H, W) in [-1, 1]; latents (B, C, h, w). Everything in float32.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from codec.bottlenecks import DiagonalGaussian
from train.config import LossConfig
from train.schedules import ramp


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The weighted sum, and each term unweighted under its logged name."""

    total: Tensor
    terms: dict[str, Tensor]


def kl_to_unit_gaussian(posterior: DiagonalGaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) in nats, mean over latent elements (arXiv:1312.6114, appendix B)."""
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def autoencoder_loss(
    x: Tensor,
    reconstruction: Tensor,
    posterior: DiagonalGaussian,
    config: LossConfig,
    perceptual: nn.Module | None,
    images_seen: int,
) -> LossTerms:
    """Weighted L1, L2, LPIPS and KL.

    Args:
        x: the images.
        reconstruction: what the decoder made of a posterior sample.
        posterior: as the encoder gave it.
        config: the weights.
        perceptual: maps two image batches to a distance each; needed when its weight is positive.
        images_seen: place in the schedules.
    """
    reconstruction = reconstruction.float()
    weight = config.perceptual_weight * ramp(
        images_seen, start=config.perceptual_start, length=config.perceptual_ramp
    )
    terms = {
        "loss/l1": F.l1_loss(reconstruction, x),
        "loss/l2": F.mse_loss(reconstruction, x),
        "loss/kl": kl_to_unit_gaussian(posterior),
    }
    total = (
        config.l1_weight * terms["loss/l1"]
        + config.l2_weight * terms["loss/l2"]
        + config.kl_weight * terms["loss/kl"]
    )
    if weight > 0:
        assert perceptual is not None
        terms["loss/lpips"] = perceptual(reconstruction, x).float().mean()
        total = total + weight * terms["loss/lpips"]
    return LossTerms(total, {name: term.detach() for name, term in terms.items()})
