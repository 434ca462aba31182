"""The adversary's losses have their published values and reach the parameters that they should."""

import io
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from codec.autoencoder import LatentAutoencoder
from train.adversary import RATIO_DELTA, Adversary, build_discriminator, check_norm
from train.discriminator import (
    DiscriminatorError,
    PatchDiscriminator,
    discriminator_loss,
    feature_distance,
    generator_loss,
    r1_penalty,
)
from train.sections import AdversarialConfig

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}
SMALL = {"disc_weight": 1.0, "disc_layers": 2, "disc_channels": 8}


def make_adversary(precision: str = "no", seed: int = 0, **settings: Any) -> Adversary:
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    return Adversary(AdversarialConfig(**{**SMALL, **settings}), accelerator, seed)


def make_codec() -> tuple[LatentAutoencoder, Tensor, Tensor]:
    """A codec, four images and their reconstructions."""
    torch.manual_seed(0)
    model = LatentAutoencoder(**TINY)
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    return model, x, model(x).sample


def pictures(count: int = 4) -> tuple[Tensor, Tensor]:
    """Real images that are smooth and others that are noise."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, 16, 16)
    return real, torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1


def reached(module: nn.Module) -> bool:
    """Whether any parameter has a gradient other than zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("norm", ["none", "group", "batch", "spectral"])
@pytest.mark.parametrize("term", ["adv/generator", "adv/feature_matching"])
def test_generator_terms_reach_the_codec_only(term: str, norm: str) -> None:
    model, x, y = make_codec()
    adversary = make_adversary(disc_norm=norm, feature_matching_weight=1.0)
    adversary.generator_terms(x, y)[term].backward()
    assert reached(model.encoder)
    assert reached(model.decoder)
    assert all(p.grad is None for p in adversary.network.parameters())
    assert all(p.requires_grad for p in adversary.network.parameters())


@pytest.mark.parametrize("norm", ["none", "group", "batch", "spectral"])
def test_the_discriminators_loss_reaches_it_only(norm: str) -> None:
    model, x, y = make_codec()
    adversary = make_adversary(disc_norm=norm, r1_weight=1.0)
    adversary.discriminator_backward(x, y, 1.0, True)
    assert all(p.grad is not None for p in adversary.network.parameters())
    assert reached(adversary.network)
    assert all(p.grad is None for p in model.parameters())


def test_r1_reaches_the_discriminator_only() -> None:
    network = PatchDiscriminator(8, 2)
    x = torch.rand(2, 3, 16, 16)
    r1_penalty(lambda images: network(images).logits, x).backward()
    assert reached(network)
    assert x.grad is None
    assert not x.requires_grad


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])
    assert discriminator_loss(real, fake, "hinge") == pytest.approx(0.5 * (0.25 + 1.0))
    assert generator_loss(fake, "hinge") == pytest.approx(0.5)

    def cross_entropy(logits: Tensor, sign: int) -> float:
        return sum(math.log1p(math.exp(-sign * v)) for v in logits.tolist()) / 2

    expected = 0.5 * (cross_entropy(real, 1) + cross_entropy(fake, -1))
    assert discriminator_loss(real, fake, "non_saturating") == pytest.approx(expected)
    assert generator_loss(fake, "non_saturating") == pytest.approx(cross_entropy(fake, 1))


def test_feature_distance_is_the_mean_of_layers_and_moves_the_fake_side() -> None:
    real = [torch.zeros(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 1, requires_grad=True)]
    fake = [torch.ones(1, 2, 2, 2, requires_grad=True), torch.full((1, 1), 3.0)]
    distance = feature_distance(real, fake)
    distance.backward()
    assert distance.item() == pytest.approx((1 + 3) / 2)
    assert fake[0].grad is not None
    assert real[0].grad is None


@pytest.mark.parametrize("side", [4, 12])
def test_r1_of_a_linear_discriminator_is_its_squared_weight(side: int) -> None:
    """Whatever the number of patches, as long as they do not overlap."""
    layer = nn.Conv2d(3, 1, 4, stride=4)
    penalty = r1_penalty(layer, torch.rand(2, 3, side, side))
    penalty.backward()
    torch.testing.assert_close(penalty, layer.weight.square().sum())
    torch.testing.assert_close(layer.weight.grad, 2 * layer.weight.detach())


def test_r1_is_lazy_and_as_much_heavier() -> None:
    x, y = pictures()
    adversary = make_adversary(r1_weight=3.0, r1_every=2)
    plain = make_adversary()
    found = adversary.discriminator_backward(x, y, 1.0, True)
    plain.discriminator_backward(x, y, 1.0, True)
    extra = gradients(adversary.network) - gradients(plain.network)
    adversary.zero_grad()
    (0.5 * 3.0 * 2 * r1_penalty(lambda v: adversary.network(v).logits, x)).backward()
    torch.testing.assert_close(
        extra[:-1], gradients(adversary.network), rtol=1e-3, atol=1e-6
    )  # the last value, the head's bias, has no part in R1
    adversary.step(1.0)
    assert "adv/r1" in found
    assert "adv/r1" not in adversary.discriminator_backward(x, y, 1.0, True)
    adversary.step(1.0)
    assert "adv/r1" in adversary.discriminator_backward(x, y, 1.0, True)


@pytest.mark.parametrize("norm", ["none", "group", "spectral"])
def test_two_batches_of_a_step_equal_one_of_twice_the_size(norm: str) -> None:
    """Gradients, the adaptive weight and the state after the step."""
    model, x, y = make_codec()
    layer = [part for part in model.decoder.modules() if isinstance(part, nn.Conv2d)][-1].weight
    settings = {"disc_norm": norm, "disc_adaptive": True, "r1_weight": 1.0}
    whole, parts = make_adversary(**settings), make_adversary(**settings)
    for adversary, chunks in ((whole, 1), (parts, 2)):
        pairs = zip(x.chunk(chunks), y.chunk(chunks), strict=True)
        for ours, theirs in pairs:
            reconstruction = (ours - theirs).abs().mean()
            term = adversary.generator_terms(ours, theirs)["adv/generator"]
            adversary.measure_ratio(reconstruction, term, layer, 1 / chunks)
            adversary.discriminator_backward(ours, theirs, 1 / chunks, True)
    torch.testing.assert_close(gradients(parts.network), gradients(whole.network))
    term = whole.generator_terms(x, y)["adv/generator"]
    slopes = [
        torch.autograd.grad(loss, layer, retain_graph=True)[0].norm().item()
        for loss in ((x - y).abs().mean(), term)
    ]
    assert layer.grad is None
    for adversary in (whole, parts):
        assert adversary.weight == 0
        adversary.finish_ratio()
        assert adversary.weight == pytest.approx(slopes[0] / (slopes[1] + RATIO_DELTA), rel=1e-4)


def test_the_adaptive_weight_is_clamped_and_waits_for_a_measurement() -> None:
    layer = nn.Parameter(torch.ones(2))
    adversary = make_adversary(disc_adaptive=True, disc_adaptive_max=7.0)
    adversary.finish_ratio()
    assert adversary.weight == 0
    adversary.measure_ratio(100 * layer.sum(), layer.sum(), layer, 1.0)
    adversary.finish_ratio()
    assert adversary.weight == 7
    adversary.measure_ratio(layer.sum(), float("inf") * layer.sum(), layer, 1.0)
    adversary.finish_ratio()
    assert adversary.weight == 7


def test_a_constant_weight_is_one_and_measures_nothing() -> None:
    layer = nn.Parameter(torch.ones(2))
    adversary = make_adversary()
    adversary.measure_ratio(100 * layer.sum(), layer.sum(), layer, 1.0)
    adversary.finish_ratio()
    assert adversary.weight == 1


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
@pytest.mark.parametrize("norm", ["group", "batch", "spectral"])
def test_it_learns_to_tell_smooth_images_from_noise(kind: str, norm: str) -> None:
    x, y = pictures(8)
    rate = 1e-2 if norm == "spectral" else 2e-3
    adversary = make_adversary(disc_loss=kind, disc_norm=norm, disc_learning_rate=rate)
    for _ in range(60):
        adversary.zero_grad()
        found = adversary.discriminator_backward(x, y, 1.0, True)
        adversary.step(1.0)
    assert found["adv/accuracy_real"] > 0.95
    assert found["adv/accuracy_fake"] > 0.95
    assert found["adv/logits_real"] > 0 > found["adv/logits_fake"]


def test_step_takes_a_share_of_its_learning_rate() -> None:
    x, y = pictures()
    adversary = make_adversary(disc_learning_rate=1e-2)
    adversary.discriminator_backward(x, y, 1.0, True)
    before = [p.detach().clone() for p in adversary.network.parameters()]
    adversary.step(0.25)
    moved = zip(adversary.network.parameters(), before, strict=True)
    largest = max((now - then).abs().max().item() for now, then in moved)
    assert largest == pytest.approx(0.25e-2, rel=1e-2)  # Adam's first step is the rate itself


@pytest.mark.parametrize("norm", ["group", "batch", "spectral"])
def test_it_goes_on_from_its_state(norm: str) -> None:
    x, y = pictures()
    settings = {"disc_norm": norm, "r1_weight": 1.0, "r1_every": 2, "disc_adaptive": True}

    def learn(adversary: Adversary, steps: int) -> dict[str, Any]:
        for _ in range(steps):
            adversary.zero_grad()
            adversary.discriminator_backward(x, y, 1.0, True)
            adversary.step(1.0)
        return adversary.state_dict()

    first = make_adversary(**settings)
    first.weight = 3.0
    saved = stored(learn(first, 3))
    second = make_adversary(seed=1, **settings)
    second.load_state_dict(saved)
    states = learn(first, 3), learn(second, 3)
    assert second.weight == 3
    assert states[0]["steps"] == states[1]["steps"] == 6
    for name, value in states[0]["network"].items():
        assert torch.equal(states[1]["network"][name], value), name


def test_other_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (make_adversary(seed=seed, disc_norm="spectral") for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    kernels = [adversary.network.head.weight for adversary in (one, same, other)]
    assert torch.equal(kernels[0], kernels[1])
    assert not torch.equal(kernels[0], kernels[2])


def test_spectral_norms_bound_the_network_and_move_with_steps_only() -> None:
    x, y = pictures()
    adversary = make_adversary(disc_norm="spectral", disc_learning_rate=1e-2)
    with torch.no_grad():
        first, again = adversary.network(x).logits, adversary.network(x).logits
    assert torch.equal(first, again)
    for _ in range(5):
        adversary.discriminator_backward(x, y, 1.0, True)
        adversary.step(1.0)
    for module in adversary.network.modules():
        if isinstance(module, nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
            assert largest.item() == pytest.approx(1.0, abs=0.05)


def test_the_shape_is_that_of_latent_diffusion() -> None:
    network = PatchDiscriminator(64, 3, "batch")
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [64, 128, 256, 512, 1]
    assert [part.stride[0] for part in convolutions] == [2, 2, 2, 1, 1]
    assert convolutions[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in network.modules()) == 3
    deep = PatchDiscriminator(4, 5, "none")
    widths = [part.out_channels for part in deep.modules() if isinstance(part, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_leaves_one_patch(layers: int) -> None:
    network = PatchDiscriminator(4, layers)
    side = network.min_side
    assert network(torch.rand(1, 3, side, side)).logits.shape == (1, 1, 1, 1)
    with pytest.raises(DiscriminatorError, match=rf"at least {side} a side.*disc_layers"):
        network(torch.rand(1, 3, side, side - 1))


def test_it_learns_before_it_counts() -> None:
    adversary = make_adversary(disc_start=100, disc_warmup=30)
    assert [adversary.active(n) for n in (69, 70, 100)] == [False, True, True]
    assert [adversary.counts(n) for n in (70, 99, 100)] == [False, False, True]


def test_batch_norm_over_processes() -> None:
    config = AdversarialConfig(**SMALL, disc_norm="batch")
    with pytest.raises(DiscriminatorError, match=r"2 processes on CPU.*disc_norm to group"):
        check_norm(config, 2, torch.device("cpu"))
    check_norm(config, 1, torch.device("cpu"))
    check_norm(config, 2, torch.device("cuda"))
    penalised = config.model_copy(update={"r1_weight": 1.0})
    with pytest.raises(DiscriminatorError, match="r1_weight"):
        check_norm(penalised, 2, torch.device("cuda"))
    network = build_discriminator(config, 2)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in network.modules()) == 2


def test_bf16_gives_float32_losses_close_to_those_of_fp32() -> None:
    x, y = pictures()
    settings = {"r1_weight": 1.0, "feature_matching_weight": 1.0}
    exact = make_adversary(**settings)
    expected = exact.discriminator_backward(x, y, 1.0, True) | exact.generator_terms(x, y)
    AcceleratorState._reset_state(reset_partial_state=True)
    rough = make_adversary("bf16", **settings)
    found = rough.discriminator_backward(x, y, 1.0, True) | rough.generator_terms(x, y)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert torch.equal(found["adv/r1"], expected["adv/r1"])  # never in half precision
    assert found["adv/discriminator"] != expected["adv/discriminator"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_a_gradient_scaler_changes_nothing_but_the_scale() -> None:
    """The scaler of fp16, on CPU and in float32, where scaling by powers of two is exact."""
    x, y = pictures()
    plain = make_adversary()
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    scaled = Adversary(plain.config, accelerator, 0)
    for _ in range(2):
        for adversary in (plain, scaled):
            adversary.zero_grad()
            adversary.discriminator_backward(x, y, 1.0, True)
        assert torch.equal(gradients(scaled.network), gradients(plain.network) * 2**16)
        for adversary in (plain, scaled):
            adversary.step(1.0)
    for ours, theirs in zip(plain.network.parameters(), scaled.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
