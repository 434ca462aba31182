"""Class labels, and latents that are one vector."""

from pathlib import Path

import pytest
import torch

from codec.autoencoder import LatentAutoencoder

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}


def images(batch: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, side, side, generator=generator) * 2 - 1


def seeded_model(**settings: object) -> LatentAutoencoder:
    torch.manual_seed(0)
    return LatentAutoencoder(**TINY, **settings)


@pytest.fixture
def model() -> LatentAutoencoder:
    """Conditioned on five classes that differ."""
    model = seeded_model(num_classes=5)
    for half in (model.encoder, model.decoder):
        torch.nn.init.normal_(half.class_bias)
    return model


def test_the_start_is_the_network_without_labels() -> None:
    """The same initial values, the same output, whatever the label."""
    plain, conditioned = seeded_model(), seeded_model(num_classes=5)
    state = conditioned.state_dict()
    assert set(state) - set(plain.state_dict()) == {"encoder.class_bias", "decoder.class_bias"}
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    labels = torch.tensor([0, 3, -1])
    expected = plain(images()).sample
    assert torch.equal(conditioned(images(), class_labels=labels).sample, expected)
    assert torch.equal(conditioned(images()).sample, expected)


def test_labels_learn_and_then_count() -> None:
    model = seeded_model(num_classes=5)
    labels = torch.tensor([0, 3, -1])
    unlabelled = model(images()).sample
    model(images(), class_labels=labels).sample.square().mean().backward()
    for half in (model.encoder, model.decoder):
        moved = half.class_bias.grad.abs().amax(1) > 0
        assert moved.tolist() == [True, False, False, True, False]
        half.class_bias.data -= 10 * half.class_bias.grad
    labelled = model(images(), class_labels=labels).sample
    moved_biases = model(images(), class_labels=torch.full((3,), -1)).sample
    assert torch.equal(moved_biases, unlabelled)
    difference = (labelled - unlabelled).abs().amax((1, 2, 3))
    assert (difference > 1e-6).tolist() == [True, True, False]


def test_each_half_takes_its_label(model: LatentAutoencoder) -> None:
    labels = torch.tensor([1, 2, 4])
    means = [
        model.encode(images(), class_labels=each).latent_dist.mode() for each in (labels, None)
    ]
    assert (means[0] - means[1]).abs().amax((1, 2, 3)).min() > 1e-3
    whole = model.decode(means[0], class_labels=labels).sample
    alone = [
        model.decode(means[0][i : i + 1], class_labels=labels[i : i + 1]).sample for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), whole)
    assert not torch.allclose(model.decode(means[0]).sample, whole)


def test_tiles_and_slices_keep_the_label(model: LatentAutoencoder) -> None:
    x, labels = images(2, 144), torch.tensor([4, -1])
    whole = model(x, class_labels=labels).sample
    model.tile_cells = 5
    model.enable_tiling()
    model.enable_slicing()
    torch.testing.assert_close(model(x, class_labels=labels).sample, whole, rtol=0, atol=1e-5)


def test_every_parameter_takes_part_without_labels(model: LatentAutoencoder) -> None:
    """Data-parallel training waits for the gradient of each."""
    model(images()).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.class_bias.grad.abs().max() == 0


def test_autocast_is_not_undone_by_the_bias(model: LatentAutoencoder) -> None:
    seen = []
    model.encoder.stages[2].register_forward_pre_hook(lambda _, x: seen.append(x[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images(), class_labels=torch.tensor([0, 1, 2]))
    assert seen == [torch.bfloat16]


def test_labels_are_saved_with_the_model(model: LatentAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = LatentAutoencoder.from_pretrained(tmp_path)
    labels = torch.tensor([1, 2, 4])
    expected = model(images(), class_labels=labels).sample
    assert torch.equal(loaded(images(), class_labels=labels).sample, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 5], "found class_labels from 0 to 5, expected 0 to 4"),
        ([0, -2, 1], "found class_labels from -2 to 1"),
        ([0, 1], r"expected torch.int64 \(3,\)"),
        ([0.0, 1.0, 2.0], "found class_labels torch.float32"),
    ],
)
def test_wrong_labels_are_refused(
    model: LatentAutoencoder, labels: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(images(), class_labels=torch.tensor(labels))


def test_labels_need_classes() -> None:
    with pytest.raises(ValueError, match="without num_classes"):
        seeded_model()(images(), class_labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="found num_classes 0"):
        seeded_model(num_classes=0)


@pytest.mark.parametrize("bottleneck", ["gaussian", "vq", "fsq"])
def test_a_latent_can_be_one_vector(bottleneck: str) -> None:
    """f = 64 on 64 x 64 pixels."""
    torch.manual_seed(0)
    model = LatentAutoencoder(
        block_out_channels=(8,) * 7,
        encoder_layers=(0, 0, 1, 0, 1, 1, 1),
        decoder_layers=(0, 0, 1, 0, 1, 1, 1),
        bottleneck=bottleneck,
        codebook_size=16,
        num_classes=3,
    )
    output = model(images(2, 64), sample_posterior=True, class_labels=torch.tensor([0, 2]))
    encoded = model.encode(images(2, 64))
    if bottleneck == "gaussian":
        assert encoded.latent_dist.mode().shape == (2, 4, 1, 1)
    else:
        assert encoded.latents.shape == (2, 4, 1, 1)
        assert encoded.indices[0].shape == (2, 1, 1)
    assert output.sample.shape == (2, 3, 64, 64)
    output.sample.square().mean().backward()
    first = model.encoder.stages[1].weight.grad
    assert first is not None
    assert first.abs().max() > 0
