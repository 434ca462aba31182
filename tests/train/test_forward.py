"""What a batch goes through: noise by sample, transforms alike, rounding, teacher's latents."""

from collections.abc import Callable

import torch

from codec.autoencoder import LatentAutoencoder
from train.forward import LatentTransform, TrainingForward
from train.randomness import sample_generators, sample_noise
from train.sections import TrainConfig

MakeConfig = Callable[..., TrainConfig]


def make(make_config: MakeConfig, **sections: dict[str, object]) -> TrainingForward:
    config = make_config(**sections)
    torch.manual_seed(0)
    model = LatentAutoencoder(
        block_out_channels=(8, 8, 8, 16), encoder_layers=(0, 0, 1, 1), decoder_layers=(0, 0, 1, 1)
    )
    return TrainingForward(model, config)


def test_noise_belongs_to_the_sample_not_to_its_batch(make_config: MakeConfig) -> None:
    forward = make(make_config)
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    indices = torch.tensor([5, 900, 31])
    whole = forward(x, sample_generators(1, indices)).latents
    alone = forward(x[1:2], sample_generators(1, indices[1:2])).latents
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-6)
    other_seed = forward(x, sample_generators(2, indices)).latents
    assert (whole - other_seed).abs().mean() > 0.05


def test_latents_and_images_are_scaled_and_turned_alike() -> None:
    rows = torch.linspace(-1, 1, 8).reshape(1, 1, 8, 1).expand(1, 1, 8, 8)
    latents, images = LatentTransform(0.5, 1).apply(
        rows, torch.repeat_interleave(torch.repeat_interleave(rows, 8, 2), 8, 3)
    )
    assert latents.shape[-2:] == (4, 4)
    assert images.shape[-2:] == (32, 32)
    block_means = torch.nn.functional.avg_pool2d(images, 8)
    torch.testing.assert_close(latents, block_means, rtol=0, atol=0.1)
    assert latents[0, 0, 0].std() > 0.3  # rows became columns
    same, untouched = LatentTransform(1.0, 0).apply(rows, rows)
    assert torch.equal(same, rows)
    assert torch.equal(untouched, rows)


def test_equivariance_trains_on_the_transformed_target(make_config: MakeConfig) -> None:
    forward = make(make_config)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    output = forward(x, sample_generators(0, torch.tensor([0])), transform=LatentTransform(0.5, 2))
    assert output.target.shape == output.reconstruction.shape == (1, 3, 16, 16)
    assert output.latents.shape[-2:] == (4, 4)


def test_rounding_replaces_the_noise_and_lets_gradients_through(make_config: MakeConfig) -> None:
    forward = make(make_config, regularizer={"quantize_step": 0.5})
    seen = []
    decode = forward.model.decode

    def watch(z: torch.Tensor, **arguments: object) -> object:
        seen.append(z)
        return decode(z, **arguments)

    forward.model.decode = watch
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    output = forward(x, sample_generators(0, torch.tensor([0, 1])))
    steps = seen[0] / 0.5
    torch.testing.assert_close(steps, steps.round())
    assert torch.equal(output.latents, output.mean)
    output.reconstruction.sum().backward()
    assert max(float(p.grad.abs().max()) for p in forward.model.encoder.parameters()) > 0


def test_latent_noise_has_the_deviation_asked_for(make_config: MakeConfig) -> None:
    like = torch.zeros(64, 4, 8, 8)
    noise = sample_noise(like, sample_generators(0, torch.arange(64)))
    assert abs(float(noise.std()) - 1) < 0.02
    assert float(noise.mean().abs()) < 0.02
    quiet, loud = make(make_config), make(make_config, regularizer={"latent_noise": 2.0})
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    generators = [sample_generators(0, torch.tensor([0])) for _ in range(2)]
    first, second = quiet(x, generators[0]), loud(x, generators[1])
    torch.testing.assert_close(first.latents, second.latents)
    assert (first.reconstruction - second.reconstruction).abs().mean() > 0.01


def test_the_decoder_reads_the_teachers_latents(make_config: MakeConfig) -> None:
    forward = make(make_config)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    latents = torch.randn(1, 4, 4, 4)
    generators = sample_generators(0, torch.tensor([0]))
    output = forward(x, generators, teacher_latents=latents)
    expected = forward.model.decode(latents).sample
    torch.testing.assert_close(output.reconstruction, expected)
