"""Bounds of the likelihood of held-out images, where a run's objective is one.

The scale of the likelihood is one number, fitted to the held-out images themselves. Everything
runs in float32 without autocast; the noise of an image depends on its number alone.
"""

import math
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from eval.latents.bounds import BoundMeter, Bounds, log_weights
from eval.latents.likelihood import Likelihood, fit_scale
from train.held_out import HeldOut
from train.sections import TrainConfig

NUM_SAMPLES = 16
LIKELIHOOD: Likelihood = "laplace"
"""L1 with a learned log-variance is its density; it is integrated over the 8-bit levels."""
FITTED_VALUES = 2**19
"""Pixel values that the scale is fitted to, spread over the set."""


def is_bound(config: TrainConfig) -> bool:
    """Whether what a run minimises is, at its full KL weight, a bound of the likelihood.

    The negative evidence lower bound a pixel value: the likelihood of a Laplace distribution with
    one learned scale, and the whole KL of a learned posterior, with nothing added.
    """
    model, loss, regularizer = config.model, config.loss, config.regularizer
    is_learned = model.posterior_std is None or model.architecture == "autoencoder_kl"
    additions = (
        loss.l2_weight,
        loss.charbonnier_weight,
        loss.multiscale_weight,
        loss.gradient_weight,
        loss.wavelet_weight,
        loss.perceptual_weight,
        loss.tc_weight,
        loss.free_bits,
        config.rate.rate_weight,
        config.adversarial.disc_weight,
        config.adversarial.feature_matching_weight,
        regularizer.latent_noise,
        regularizer.equivariance_probability,
    )
    return (
        model.bottleneck == "gaussian"
        and is_learned
        and not model.freeze_encoder
        and loss.l1_weight == 1
        and loss.learned_logvar
        and loss.kl_weight == 1
        and loss.kl_reduction == "pixel"
        and loss.kl_target is None
        and regularizer.quantize_step is None
        and config.distillation.teacher is None
        and not any(additions)
    )


@torch.no_grad()
def measure_bounds(model: Any, held_out: HeldOut, accelerator: Accelerator) -> Bounds:
    """ELBO and importance-weighted bound over the whole set, the same on every process.

    Args:
        model: an autoencoder whose `encode` gives a Gaussian `latent_dist`, in evaluation mode.
        held_out: the images.
        accelerator: of the run.
    """
    scale = _fit_scale(model, held_out, accelerator)
    meter = BoundMeter(held_out.num_dims, scale, LIKELIHOOD, NUM_SAMPLES)
    for part in held_out.shares(model, accelerator):
        posterior = model.encode(part.x, **part.labels).latent_dist
        noise = _noise(part.numbers, posterior.mean, NUM_SAMPLES)
        decode = partial(_decode, model, part.labels)
        mean, logvar = posterior.mean, posterior.logvar
        weights = log_weights(part.levels, mean, logvar, decode, noise, scale, LIKELIHOOD)
        meter.update(weights)
    first, *others = gather_object([meter])
    for other in others:
        first.merge(other)
    bounds: Bounds = first.finish()
    return bounds


def _fit_scale(model: Any, held_out: HeldOut, accelerator: Accelerator) -> float:
    """The likelihood's scale, from one sample of each posterior."""
    stride = max(1, math.ceil(held_out.num_dims * len(held_out) / FITTED_VALUES))
    found = []
    for part in held_out.shares(model, accelerator):
        posterior = model.encode(part.x, **part.labels).latent_dist
        latents = posterior.mean + posterior.std * _noise(part.numbers, posterior.mean, 1)[0]
        output = _decode(model, part.labels, latents)
        for number, levels, values in zip(part.numbers, part.levels, output, strict=True):
            places = slice(number % stride, None, stride)  # other ones of each image
            found.append((number, levels.flatten()[places].cpu(), values.flatten()[places].cpu()))
    shares = sorted(gather_object(found), key=lambda share: int(share[0]))
    levels, values = (torch.cat([share[k] for share in shares]) for k in (1, 2))
    return fit_scale(levels, values, LIKELIHOOD)


def _decode(model: Any, labels: dict[str, Tensor], latents: Tensor) -> Tensor:
    sample: Tensor = model.decode(latents, **labels).sample
    return sample.float()


def _noise(numbers: list[int], like: Tensor, num_samples: int) -> Tensor:
    """Standard normal (K, B, C, h, w), each image's from a generator of its own on the CPU."""
    shape = (num_samples, *like.shape[1:])
    parts = [torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in numbers]
    return torch.stack(parts, dim=1).to(like)
