"""Every loss term has the value of its formula and reaches the parameters that it should."""

from collections.abc import Callable

import pytest
import torch

from codec.autoencoder import LatentAutoencoder
from codec.bottlenecks import DiagonalGaussian
from eval.lpips import BackboneError, PerceptualDistance, load_lpips
from train.config import LossConfig
from train.losses import autoencoder_loss, kl_to_unit_gaussian
from train.schedules import ramp, warmup_cosine

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}
NONE = {"l1_weight": 0.0, "l2_weight": 0.0, "perceptual_weight": 0.0, "kl_weight": 0.0}


@pytest.fixture(scope="module")
def perceptual() -> PerceptualDistance:
    try:
        return load_lpips("squeeze")
    except BackboneError as error:
        pytest.skip(f"no LPIPS backbone at hand: {error}")


def gradients(
    weights: dict[str, float], perceptual: PerceptualDistance | None = None
) -> tuple[float, float]:
    """Largest gradient in encoder and decoder under these weights alone."""
    torch.manual_seed(0)
    model = LatentAutoencoder(**TINY)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    output = model(x, sample_posterior=True, generator=torch.Generator().manual_seed(1))
    config = LossConfig(**{**NONE, **weights})
    terms = autoencoder_loss(x, output.sample, output.latent_dist, config, perceptual, 0)
    terms.total.backward()
    parts = []
    for module in (model.encoder, model.decoder):
        found = [p.grad.abs().max().item() for p in module.parameters() if p.grad is not None]
        parts.append(max(found, default=0.0))
    return parts[0], parts[1]


@pytest.mark.parametrize("name", ["l1_weight", "l2_weight"])
def test_reconstruction_terms_reach_encoder_and_decoder(name: str) -> None:
    encoder, decoder = gradients({name: 1.0})
    assert encoder > 0
    assert decoder > 0


def test_lpips_reaches_encoder_and_decoder(perceptual: PerceptualDistance) -> None:
    encoder, decoder = gradients({"perceptual_weight": 1.0}, perceptual)
    assert encoder > 0
    assert decoder > 0


def test_kl_reaches_the_encoder_only() -> None:
    encoder, decoder = gradients({"kl_weight": 1.0})
    assert encoder > 0
    assert decoder == 0


def test_kl_is_that_of_torch() -> None:
    torch.manual_seed(0)
    parameters = torch.randn(2, 8, 3, 3)
    mean, log_variance = parameters.chunk(2, dim=1)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    found = kl_to_unit_gaussian(DiagonalGaussian(parameters))
    torch.testing.assert_close(found, expected.mean())


def test_the_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    posterior = DiagonalGaussian(torch.randn(2, 8, 2, 2))
    config = LossConfig(l1_weight=2, l2_weight=3, kl_weight=0.5, perceptual_weight=0)
    loss = autoencoder_loss(x, y, posterior, config, None, 0)
    expected = 2 * (x - y).abs().mean() + 3 * (x - y).square().mean()
    torch.testing.assert_close(loss.total, expected + 0.5 * kl_to_unit_gaussian(posterior))


def test_lpips_waits_for_its_start(perceptual: PerceptualDistance) -> None:
    x = torch.rand(1, 3, 64, 64)
    posterior = DiagonalGaussian(torch.zeros(1, 8, 8, 8))
    config = LossConfig(perceptual_weight=1.0, perceptual_start=100, perceptual_ramp=0)

    def names(images: int) -> set[str]:
        return set(autoencoder_loss(x, x + 0.1, posterior, config, perceptual, images).terms)

    assert "loss/lpips" not in names(99)
    assert "loss/lpips" in names(100)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda n: warmup_cosine(n, warmup=9, total=100, final=0.1), {0: 0.1, 8: 0.9, 100: 0.1}),
        (lambda n: warmup_cosine(n, warmup=0, total=100, final=0.0), {0: 1.0, 50: 0.5, 200: 0.0}),
        (lambda n: ramp(n, start=10, length=10), {0: 0.0, 9: 0.0, 10: 0.1, 19: 1.0, 99: 1.0}),
        (lambda n: ramp(n, start=0, length=0), {0: 1.0}),
    ],
)
def test_schedules(schedule: Callable[[int], float], expected: dict[int, float]) -> None:
    assert {n: schedule(n) for n in expected} == pytest.approx(expected)
