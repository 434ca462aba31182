"""The bounds against models whose likelihood is known."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from eval.latents.bounds import BoundMeter, Bounds, latent_log_ratio, log_weights
from eval.latents.likelihood import log_probability

DIMS, LATENTS, IMAGES, NOISE_STD = 6, 2, 40, 0.5


def linear_gaussian() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x = W z + noise: data (B, D), W (D, L), and the true posterior's mean and covariance."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(DIMS, LATENTS, generator=generator).double()
    z = torch.randn(IMAGES, LATENTS, generator=generator).double()
    noise = torch.randn(IMAGES, DIMS, generator=generator).double()
    x = z @ weights.T + NOISE_STD * noise
    covariance = torch.linalg.inv(torch.eye(LATENTS) + weights.T @ weights / NOISE_STD**2)
    return x, weights, x @ weights @ covariance.T / NOISE_STD**2, covariance


def toy_bounds(num_samples: int, seed: int = 0, exact: bool = False) -> Bounds:
    """Bounds under a diagonal posterior that is a little off, or the transformed exact one."""
    x, weights, mean, covariance = linear_gaussian()
    if exact:  # latents in the posterior's own axes, where it is diagonal
        values, axes = torch.linalg.eigh(covariance)
        mean, weights, variance = mean @ axes, weights @ axes, values
    else:
        variance = 2.5 * covariance.diagonal()
    logvar = variance.log().expand_as(mean)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, IMAGES, LATENTS, generator=generator).double()
    z = mean + (0.5 * logvar).exp() * noise
    fit = Normal(z @ weights.T, NOISE_STD).log_prob(x).sum(-1)
    ratio = torch.stack([latent_log_ratio(sample, mean, logvar) for sample in z])
    meter = BoundMeter(DIMS, NOISE_STD, "gaussian", num_samples)
    meter.update(fit + ratio)
    return meter.finish()


def true_bits() -> float:
    x, weights, _, _ = linear_gaussian()
    covariance = weights @ weights.T + NOISE_STD**2 * torch.eye(DIMS)
    likelihood = MultivariateNormal(torch.zeros(DIMS).double(), covariance)
    return -float(likelihood.log_prob(x).mean()) / (DIMS * math.log(2))


def test_more_samples_come_closer_to_the_likelihood() -> None:
    """In expectation over draws, so that of few samples many draws are averaged."""
    truth = true_bits()
    bounds = {k: [toy_bounds(k, seed) for seed in range(2000 // k)] for k in (2, 20, 2000)}
    iwae = {k: sum(b.iwae_bits_per_dim for b in found) / len(found) for k, found in bounds.items()}
    for found in bounds.values():
        assert all(b.iwae_bits_per_dim < b.elbo_bits_per_dim for b in found)
    assert bounds[2000][0].elbo_bits_per_dim > iwae[2] + 0.01 > iwae[20] + 0.02
    assert iwae[20] > truth
    assert iwae[2000] == pytest.approx(truth, abs=1e-3)


def test_the_true_posterior_makes_both_exact() -> None:
    found = toy_bounds(3, exact=True)
    assert found.elbo_bits_per_dim == pytest.approx(true_bits(), rel=1e-9)
    assert found.iwae_bits_per_dim == pytest.approx(true_bits(), rel=1e-9)


def test_one_sample_makes_them_equal() -> None:
    """And in expectation that is the analytic evidence lower bound: many draws of one sample."""
    draws = [toy_bounds(1, seed) for seed in range(300)]
    assert all(draw.elbo_bits_per_dim == pytest.approx(draw.iwae_bits_per_dim) for draw in draws)
    mean = sum(draw.iwae_bits_per_dim for draw in draws) / len(draws)
    assert mean == pytest.approx(toy_bounds(4000).elbo_bits_per_dim, abs=0.01)


def test_discretised_pixels_against_integration_over_the_latent() -> None:
    """One latent, 12 pixel values: p(x) by quadrature over z."""
    gains = torch.linspace(-0.6, 0.8, 12).view(1, 3, 2, 2)

    def decode(z: Tensor) -> Tensor:
        return torch.tanh(gains * z)

    noise = 6 * torch.sin(torch.arange(12.0)).view(1, 3, 2, 2)
    x = torch.round((decode(torch.tensor(0.7)) + 1) * 127.5 + noise).clamp(0, 255).byte()
    grid = torch.linspace(-6, 6, 20_001).double().view(-1, 1, 1, 1)
    joint = log_probability(x.expand(len(grid), -1, -1, -1), decode(grid), 8.0, "laplace")
    joint = joint.sum((1, 2, 3)) + Normal(0.0, 1.0).log_prob(grid.flatten())
    truth = -float(torch.logsumexp(joint, 0) + math.log(12 / 20_000)) / (12 * math.log(2))
    mean, logvar = torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), math.log(0.05**2))
    noise = torch.randn(3000, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    meter = BoundMeter(12, 8.0, "laplace", 3000)
    meter.update(log_weights(x, mean, logvar, decode, noise, 8.0, "laplace"))
    found = meter.finish()
    assert found.elbo_bits_per_dim > found.iwae_bits_per_dim
    assert found.iwae_bits_per_dim == pytest.approx(truth, abs=0.01)


def test_parts_merge_to_the_whole() -> None:
    weights = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    whole, first, second = (BoundMeter(10, 1.0, "laplace", 5) for _ in range(3))
    whole.update(weights)
    first.update(weights[:, :3])
    second.update(weights[:, 3:])
    first.merge(second)
    found, expected = first.finish(), whole.finish()
    assert found.iwae_bits_per_dim == pytest.approx(expected.iwae_bits_per_dim)
    assert (found.num_images, found.num_samples) == (7, 5)
