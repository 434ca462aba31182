"""The estimate of the total correlation is one, and reaches the parameters that it should."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codec.autoencoder import LatentAutoencoder
from train.sections import LossConfig
from train.total_correlation import TotalCorrelation, TotalCorrelationError, permute_dims

VECTOR = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}


def make(seed: int = 0, channels: int = 4, **settings: Any) -> TotalCorrelation:
    config = LossConfig(**{"tc_weight": 1.0, "tc_channels": 32, "tc_layers": 2, **settings})
    return TotalCorrelation(config, channels, Accelerator(cpu=True), seed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reached(module: nn.Module) -> bool:
    """Whether any parameter has a gradient other than zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def vector_codec() -> tuple[LatentAutoencoder, Tensor]:
    """A codec whose downscale is the size of the images, and the latents of four."""
    torch.manual_seed(0)
    model = LatentAutoencoder(**VECTOR)
    posterior = model.encode(torch.rand(4, 3, 8, 8) * 2 - 1).latent_dist
    return model, posterior.sample(generator=generator())


def test_the_term_reaches_the_encoder_only() -> None:
    model, latents = vector_codec()
    correlation = make()
    correlation.generator_term(latents).backward()
    assert reached(model.encoder)
    assert not reached(model.decoder)
    assert all(p.grad is None for p in correlation.network.parameters())
    assert all(p.requires_grad for p in correlation.network.parameters())


def test_the_discriminators_loss_reaches_it_only() -> None:
    model, latents = vector_codec()
    correlation = make()
    correlation.discriminator_backward(latents, generator(), 1.0, True)
    assert all(p.grad is not None for p in correlation.network.parameters())
    assert reached(correlation.network)
    assert all(p.grad is None for p in model.parameters())


def learned_estimate(correlation_of_two: float) -> float:
    """What it estimates after learning, on fresh Gaussian pairs; in nats."""
    factor = torch.linalg.cholesky(
        torch.tensor([[1.0, correlation_of_two], [correlation_of_two, 1.0]])
    )
    draws, shuffles = generator(1), generator(2)

    def draw(count: int) -> Tensor:
        return (torch.randn(count, 2, generator=draws) @ factor.T)[..., None, None]

    correlation = make(channels=2, tc_learning_rate=3e-3)
    for _ in range(300):
        correlation.zero_grad()
        correlation.discriminator_backward(draw(256), shuffles, 1.0, True)
        correlation.step()
    with torch.no_grad():
        return correlation.generator_term(draw(8192)).item()


def test_the_estimate_is_the_total_correlation_of_gaussian_pairs() -> None:
    """Which is -log(1 - rho^2) / 2 in nats."""
    assert learned_estimate(0.0) == pytest.approx(0.0, abs=0.05)
    assert learned_estimate(0.9) == pytest.approx(0.830, abs=0.2)


def test_shuffling_keeps_each_channel_and_breaks_the_vectors() -> None:
    vectors = torch.arange(32.0).reshape(16, 2)
    shuffled = permute_dims(vectors, generator())
    assert torch.equal(shuffled.sort(dim=0).values, vectors)
    assert not torch.equal(shuffled[:, 1] - shuffled[:, 0], vectors[:, 1] - vectors[:, 0])
    assert torch.equal(shuffled, permute_dims(vectors, generator()))


def test_latents_must_be_vectors_of_several_images() -> None:
    correlation = make()
    with pytest.raises(TotalCorrelationError, match=r"4x2 positions, expected 1x1"):
        correlation.generator_term(torch.zeros(2, 4, 2, 4))
    with pytest.raises(TotalCorrelationError, match="batch of 1, expected at least 2"):
        correlation.discriminator_backward(torch.zeros(1, 4, 1, 1), generator(), 1.0, True)


def test_it_goes_on_from_its_state() -> None:
    latents = torch.randn(8, 4, 1, 1, generator=generator())
    shuffles = [generator(1), generator(1)]
    first, second = make(seed=0), make(seed=1)

    def learn(correlation: TotalCorrelation, shuffle: torch.Generator) -> None:
        for _ in range(3):
            correlation.zero_grad()
            correlation.discriminator_backward(latents, shuffle, 1.0, True)
            correlation.step()

    learn(first, shuffles[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    shuffles[1].set_state(shuffles[0].get_state())
    for correlation, shuffle in zip((first, second), shuffles, strict=True):
        learn(correlation, shuffle)
    assert second.state_dict()["steps"] == 6
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
