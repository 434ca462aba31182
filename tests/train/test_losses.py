"""Every loss term has the value of its formula and reaches the parameters that it should."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from codec.autoencoder import LatentAutoencoder
from eval.lpips import BackboneError, PerceptualDistance, load_lpips
from train.losses import charged_kl, kl_per_channel, reconstruction_terms, with_logvar
from train.sections import LossConfig

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
    "posterior_std": None,
}
RECONSTRUCTION = ("l1", "l2", "charbonnier", "multiscale", "gradient", "wavelet")


@dataclass
class Pass:
    """A tiny codec and what it made of two images."""

    model: LatentAutoencoder
    x: Tensor
    reconstruction: Tensor
    mean: Tensor
    logvar: Tensor


@pytest.fixture
def codec_pass() -> Pass:
    torch.manual_seed(0)
    model = LatentAutoencoder(**TINY)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    output = model(x, sample_posterior=True, generator=torch.Generator().manual_seed(1))
    return Pass(model, x, output.sample, output.latent_dist.mean, output.latent_dist.logvar)


@pytest.fixture(scope="module")
def perceptual() -> PerceptualDistance:
    try:
        return load_lpips("squeeze")
    except BackboneError as error:
        pytest.skip(f"no LPIPS backbone at hand: {error}")


def only(**weights: float) -> LossConfig:
    """A configuration in which nothing else has a weight."""
    return LossConfig(**{"l1_weight": 0.0, "perceptual_weight": 0.0, "kl_weight": 0.0, **weights})


def reached(module: nn.Module) -> bool:
    """Whether any parameter has a gradient other than zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@pytest.mark.parametrize("name", RECONSTRUCTION)
def test_reconstruction_terms_reach_encoder_and_decoder(name: str, codec_pass: Pass) -> None:
    config = only(**{f"{name}_weight": 1.0})
    terms = reconstruction_terms(codec_pass.x, codec_pass.reconstruction, config)
    assert {key for key, term in terms.items() if term.requires_grad} == {f"loss/{name}"}
    assert terms.keys() == {"loss/l1", "loss/l2", f"loss/{name}"}
    terms[f"loss/{name}"].backward()
    assert reached(codec_pass.model.encoder)
    assert reached(codec_pass.model.decoder)
    assert codec_pass.x.grad is None


def test_lpips_reaches_encoder_and_decoder(
    perceptual: PerceptualDistance, codec_pass: Pass
) -> None:
    perceptual(codec_pass.reconstruction, codec_pass.x).mean().backward()
    assert reached(codec_pass.model.encoder)
    assert reached(codec_pass.model.decoder)
    assert not reached(perceptual)


@pytest.mark.parametrize("reduction", ["latent", "pixel"])
def test_kl_reaches_the_encoder_only(reduction: str, codec_pass: Pass) -> None:
    config = only(kl_reduction=reduction)
    charged_kl(codec_pass.mean, codec_pass.logvar, config, codec_pass.x[0].numel()).backward()
    assert reached(codec_pass.model.encoder)
    assert not reached(codec_pass.model.decoder)


def test_learned_logvar_gets_a_gradient_and_passes_one_on(codec_pass: Pass) -> None:
    logvar = nn.Parameter(torch.tensor(0.5))
    terms = reconstruction_terms(codec_pass.x, codec_pass.reconstruction, only(l1_weight=1.0))
    l1 = terms["loss/l1"]
    with_logvar(l1, logvar).backward()
    assert logvar.grad is not None
    assert logvar.grad.item() == pytest.approx(1 - l1.item() / math.exp(0.5), abs=1e-5)
    assert reached(codec_pass.model.encoder)
    assert reached(codec_pass.model.decoder)


def test_learned_logvar_settles_at_the_logarithm_of_the_mean_error() -> None:
    torch.manual_seed(0)
    errors = torch.rand(64)
    logvar = nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.SGD([logvar], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        with_logvar(errors.mean(), logvar).backward()
        optimizer.step()
    assert logvar.item() == pytest.approx(math.log(errors.mean().item()), abs=1e-4)


def test_reconstruction_terms_have_the_values_of_their_formulas() -> None:
    """An error that is 1 in the upper left pixel of each 8x8 square, and 0 elsewhere."""
    error = torch.zeros(2, 3, 16, 16)
    error[..., ::8, ::8] = 1.0
    x = torch.rand(2, 3, 16, 16)
    config = LossConfig(**{f"{name}_weight": 1.0 for name in RECONSTRUCTION})
    found = reconstruction_terms(x, x + error, config)
    expected = {
        "loss/l1": 1 / 64,
        "loss/l2": 1 / 64,
        "loss/charbonnier": (math.hypot(1.0, 1e-3) + 63 * 1e-3) / 64,
        "loss/multiscale": 1 / 64,  # averages do not cancel where all errors have one sign
        "loss/gradient": 3 / (16 * 15) * 2,  # 3 differences of 1 in each of two rows of 15
        "loss/wavelet": 0.5 / 16,  # each band is 1/2 in one of 16 blocks of 2x2
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        expected, rel=1e-4
    )


def test_multiscale_sees_only_what_survives_averaging() -> None:
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    checkers = ((rows + columns) % 2 * 2.0 - 1).expand(1, 3, 16, 16)
    config = LossConfig(multiscale_weight=1.0, wavelet_weight=1.0)
    found = reconstruction_terms(torch.zeros_like(checkers), checkers, config)
    assert found["loss/multiscale"] == 0
    assert found["loss/wavelet"] == pytest.approx(2 / 3)  # all of it in the diagonal band


@pytest.mark.parametrize("size", [(2, 2), (10, 14), (34, 18)])
def test_every_term_takes_any_even_size(size: tuple[int, int]) -> None:
    config = LossConfig(**{f"{name}_weight": 1.0 for name in RECONSTRUCTION})
    x = torch.zeros(1, 3, *size)
    found = reconstruction_terms(x, x + 0.25, config)
    assert found["loss/multiscale"].item() == pytest.approx(0.25)
    assert found["loss/gradient"] == found["loss/wavelet"] == 0


def test_terms_are_float32_whatever_the_reconstruction_is() -> None:
    x = torch.rand(1, 3, 8, 8)
    config = LossConfig(**{f"{name}_weight": 1.0 for name in RECONSTRUCTION})
    found = reconstruction_terms(x, x.bfloat16(), config)
    assert {term.dtype for term in found.values()} == {torch.float32}


def random_posterior() -> tuple[Tensor, Tensor, Tensor]:
    """Mean and log-variance (2, 4, 3, 3), and torch's KL of each element in nats."""
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 2, 4, 3, 3, generator=generator)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    unit = torch.distributions.Normal(0.0, 1.0)
    return mean, logvar, torch.distributions.kl_divergence(normal, unit)


def test_kl_is_that_of_torch_in_both_reductions() -> None:
    mean, logvar, expected = random_posterior()
    torch.testing.assert_close(kl_per_channel(mean, logvar), expected.mean(dim=(0, 2, 3)))
    by_latent = charged_kl(mean, logvar, LossConfig(), 48)
    torch.testing.assert_close(by_latent, expected.mean())
    by_pixel = charged_kl(mean, logvar, LossConfig(kl_reduction="pixel"), 48)
    torch.testing.assert_close(by_pixel, expected.sum(dim=(1, 2, 3)).mean() / 48)


def test_free_bits_spare_a_channel_below_them_and_charge_all_of_one_above() -> None:
    mean = torch.zeros(2, 2, 3, 3)
    mean[:, 0], mean[:, 1] = 1.0, 1.3  # 0.72 and 1.22 bits an element
    mean.requires_grad_(True)
    logvar = torch.zeros(2, 2, 3, 3)
    charged = charged_kl(mean, logvar, LossConfig(free_bits=1.0), 1)
    charged.backward()
    assert charged.item() == pytest.approx((math.log(2.0) + 0.5 * 1.3**2) / 2)
    assert mean.grad is not None
    assert not mean.grad[:, 0].any()
    torch.testing.assert_close(mean.grad[:, 1], torch.full((2, 3, 3), 1.3 / mean.numel()))
