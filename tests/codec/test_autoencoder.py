"""LatentAutoencoder behaves like a diffusers autoencoder, within its limits of size."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from codec.autoencoder import LatentAutoencoder
from codec.bottlenecks import DiagonalGaussian, GaussianBottleneck
from codec.networks import receptive_margin

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}


@pytest.fixture
def model() -> LatentAutoencoder:
    """A tiny model whose every convolution counts (fresh blocks start as identities)."""
    torch.manual_seed(0)
    model = LatentAutoencoder(**TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def image(height: int = 64, width: int = 48, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_and_posterior(model: LatentAutoencoder) -> None:
    x = image(batch=2)
    posterior = model.encode(x).latent_dist
    assert posterior.mode().shape == (2, 4, 8, 6)
    torch.testing.assert_close(posterior.std, torch.full((2, 4, 8, 6), 0.14))
    assert posterior.kl().shape == (2,)
    first, second = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert model.decode(first).sample.shape == (2, 3, 64, 48)
    (alone,) = model.encode(x[:1], return_dict=False)
    torch.testing.assert_close(alone.mode(), posterior.mode()[:1])


def test_forward_decodes_the_mode_or_a_sample(model: LatentAutoencoder) -> None:
    x = image()
    output = model(x)
    assert torch.equal(output.sample, model.decode(output.latent_dist.mode()).sample)
    seeded = [
        model(x, sample_posterior=True, generator=torch.Generator().manual_seed(7)).sample
        for _ in range(2)
    ]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], output.sample)
    assert torch.equal(model(x, return_dict=False)[0], output.sample)


def test_the_posterior_is_that_of_diffusers() -> None:
    """Same attributes, draws and values as the class that it stands for."""
    torch.manual_seed(0)
    parameters = 3 * torch.randn(2, 8, 5, 6)
    ours, theirs = DiagonalGaussian(parameters), DiagonalGaussianDistribution(parameters)
    others = [cls(parameters.flip(0)) for cls in (type(ours), type(theirs))]
    for name in ("parameters", "mean", "logvar", "std", "var"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    draws = [part.sample(torch.Generator().manual_seed(5)) for part in (ours, theirs)]
    assert torch.equal(*draws)
    assert torch.equal(ours.mode(), theirs.mode())
    torch.testing.assert_close(ours.kl(), theirs.kl())
    torch.testing.assert_close(ours.kl(others[0]), theirs.kl(others[1]))
    torch.testing.assert_close(ours.nll(draws[0]), theirs.nll(draws[0]))
    lists = ([torch.Generator().manual_seed(seed) for seed in (5, 6)] for _ in range(2))
    assert torch.equal(
        *(part.sample(each) for part, each in zip((ours, theirs), lists, strict=True))
    )


@pytest.mark.parametrize("channels", [4, 16])
def test_a_learned_posterior_has_its_own_deviation(channels: int) -> None:
    model = LatentAutoencoder(**TINY, latent_channels=channels, posterior_std=None)
    posterior = model.encode(image()).latent_dist
    assert posterior.mode().shape == (1, channels, 8, 6)
    assert posterior.std.unique().numel() > 1
    with pytest.raises(ValueError, match="expected a positive number"):
        GaussianBottleneck(4, 0.0)


def test_the_configuration_is_what_pipelines_read(model: LatentAutoencoder) -> None:
    assert 2 ** (len(model.config.block_out_channels) - 1) == 8 == model.factor
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"):
        assert key in model.config
        assert key in AutoencoderKL().config


@pytest.mark.parametrize("factor", [4, 16])
def test_the_factor_is_configuration(factor: int) -> None:
    levels = factor.bit_length()
    layers = (0,) * (levels - 1) + (1,)
    model = LatentAutoencoder(
        block_out_channels=(8,) * levels, encoder_layers=layers, decoder_layers=layers
    )
    assert model.encode(image(64, 64)).latent_dist.mode().shape[-1] == 64 // factor
    assert model(image(64, 64)).sample.shape == (1, 3, 64, 64)


def test_save_and_load(model: LatentAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = LatentAutoencoder.from_pretrained(tmp_path, use_safetensors=True)
    assert torch.equal(loaded(image()).sample, model(image()).sample)
    half = LatentAutoencoder.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.encode(image().bfloat16()).latent_dist.mode().dtype == torch.bfloat16
    rebuilt = LatentAutoencoder.from_config(model.config)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(image()).sample, model(image()).sample)


@pytest.mark.parametrize("size", [(64, 48), (256, 200), (8, 264), (8, 8)])
def test_tiles_match_the_whole(model: LatentAutoencoder, size: tuple[int, int]) -> None:
    x = image(*size)
    whole = model(x)
    model.tile_cells = 5
    model.enable_tiling()
    tiled = model(x)
    torch.testing.assert_close(tiled.sample, whole.sample, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        tiled.latent_dist.mode(), whole.latent_dist.mode(), rtol=0, atol=1e-5
    )
    model.disable_tiling()
    assert torch.equal(model(x).sample, whole.sample)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_margin_is_enough_and_not_idle(model: LatentAutoencoder, half: str) -> None:
    """A change reaches as far as the margin says: never beyond, and within one cell of it."""
    cells = 21
    middle = cells // 2
    if half == "encoder":
        x = image(8 * cells, 8 * cells).requires_grad_()
        model.encode(x).latent_dist.mode()[0, :, middle, middle].sum().backward()
        assert x.grad is not None
        columns = x.grad[0].abs().amax((0, 1)).unflatten(0, (cells, 8)).amax(1) > 0
    else:
        z = torch.randn(1, 4, cells, cells, requires_grad=True)
        model.decode(z).sample[0, :, 8 * middle : 8 * middle + 8].sum().backward()
        assert z.grad is not None
        columns = z.grad[0].abs().amax((0, 2)) > 0
    reach = int(columns.nonzero().flatten().sub(middle).abs().max())
    margin = getattr(model, f"{half}_margin") // 8
    assert margin - 1 <= reach <= margin


def test_margin_of_a_known_network() -> None:
    # stem and head at levels 2 and 3: 4 + 8; one block each: 2 * 4 + 2 * 8
    assert receptive_margin((8, 8, 8, 16), (0, 0, 1, 1), alignment=8) == 40


def test_slicing_matches_the_batch(model: LatentAutoencoder) -> None:
    x = image(batch=3)
    whole = model(x).sample
    model.enable_slicing()
    torch.testing.assert_close(model(x).sample, whole, rtol=0, atol=1e-5)
    model.disable_slicing()
    assert not model.use_slicing


def test_gradient_checkpointing_changes_nothing(model: LatentAutoencoder) -> None:
    model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(image()).sample.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    calls = []
    model.enable_gradient_checkpointing(lambda run, x: calls.append(run) or run(x))
    gradients()
    assert len(calls) == 4  # the residual blocks of both halves
    model.enable_gradient_checkpointing()
    for first, second in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(first, second)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("size", [(63, 64), (64, 4), (0, 8)])
def test_sides_must_be_multiples(model: LatentAutoencoder, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected sides that are multiples of 8"):
        model.encode(torch.zeros(1, 3, *size))


def test_halves_must_fit_each_other() -> None:
    with pytest.raises(ValueError, match="found 4 encoder widths and 3 decoder widths"):
        LatentAutoencoder(**TINY, decoder_block_out_channels=(8, 8, 8))
    with pytest.raises(ValueError, match="one of each a level"):
        LatentAutoencoder(block_out_channels=(8, 8, 8, 16), encoder_layers=(1, 1))


def test_the_default_is_small() -> None:
    assert LatentAutoencoder().num_parameters() <= 7_500_000
