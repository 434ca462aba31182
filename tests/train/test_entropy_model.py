"""The context model's differentiable twin: what it may see, what learns, and the integers it gives.

B images, C channels, h w latent grid.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import train.entropy.model
from codec import quantizer
from codec.entropy.context_coder import ContextCoder
from codec.entropy.context_lattice import CONTEXT_PASSES
from eval.latents.entropy import order0_bits
from train.entropy.integers import fit_coder
from train.entropy.model import ContextModel

CHANNELS, SIDE = 3, 24
STEPS = (0.1, 0.3, 0.8)
UNITS = 1 << 16

Trained = tuple[ContextModel, ContextCoder]


def fields(count: int, seed: int) -> Tensor:
    """Smooth random fields (count, C, h, w); each channel resembles the one before it."""
    noise = torch.randn(count, CHANNELS, SIDE + 4, SIDE + 4, generator=generator(seed))
    smooth = 5 * F.avg_pool2d(noise, 5, stride=1)
    mixed = [smooth[:, 0]]
    for channel in range(1, CHANNELS):
        mixed.append(0.8 * mixed[-1] + 0.6 * smooth[:, channel])
    return torch.stack(mixed, dim=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounded(latents: Tensor, steps: Tensor) -> Tensor:
    widths = steps[:, None, None, None]
    return torch.round(latents / widths) * widths


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A twin after a hundred steps, and its integer coder."""
    torch.manual_seed(0)
    latents = fields(48, seed=1)
    model = ContextModel(latents.std(dim=(0, 2, 3)).tolist(), units=16, head_units=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draws = generator(2)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 100)
        chosen = latents[torch.randint(len(latents), (4,), generator=draws)]
        steps = 0.05 * 20 ** torch.rand(4, generator=draws)
        loss = model(rounded(chosen, steps), steps).sum() / chosen.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    coder = fit_coder(model.eval(), list(latents.numpy()), [round(s * UNITS) for s in STEPS])
    return model, coder


@pytest.mark.parametrize("step", STEPS)
@torch.no_grad()
def test_the_integer_coder_costs_what_the_twin_says(trained: Trained, step: float) -> None:
    model, coder = trained
    latents, units = fields(8, seed=3), round(step * UNITS)
    steps = torch.full((len(latents),), units / UNITS)
    expected = float(model(rounded(latents, steps), steps).sum())
    symbols = [quantizer.quantize(image, units) for image in latents.numpy()]
    assert sum(coder.estimate_bits(image, units) for image in symbols) == pytest.approx(
        expected, rel=0.03
    )
    assert expected < 0.8 * sum(order0_bits(image) for image in symbols)  # it has learned
    payload = coder.encode(symbols[0], units)
    assert np.array_equal(coder.decode(payload, symbols[0].shape, units), symbols[0])


@torch.no_grad()
def test_noise_costs_what_rounding_does(trained: Trained) -> None:
    """Where steps are fine: the expectation over noise approaches that over symbols."""
    model, _ = trained
    latents = fields(8, seed=4)
    for step, tolerance in ((0.1, 0.02), (0.3, 0.05)):
        steps = torch.full((len(latents),), step)
        noise = (torch.rand(latents.shape, generator=generator(5)) - 0.5) * step
        noisy, exact = model(latents + noise, steps).sum(), model(rounded(latents, steps), steps)
        assert float(noisy) == pytest.approx(float(exact.sum()), rel=tolerance)


def shaken(model: ContextModel) -> ContextModel:
    """The model with no parameter left at zero."""
    draws = generator(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return model


@pytest.mark.parametrize("is_noisy", [False, True], ids=["rounded", "noisy"])
def test_gradients_reach_every_parameter_and_every_latent(is_noisy: bool) -> None:
    model = ContextModel([1.0] * CHANNELS, units=8, head_units=4)
    latents = fields(2, seed=7)
    steps = torch.tensor([0.2, 0.4])
    if is_noisy:
        noise = torch.rand(latents.shape, generator=generator(8)) - 0.5
        latents = latents + noise * steps[:, None, None, None]
    else:
        latents = rounded(latents, steps)
    latents.requires_grad_()
    model(latents, steps).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name
    assert latents.grad is not None
    assert (latents.grad != 0).float().mean() > 0.99


def test_levels_and_earlier_channels_have_weights_of_their_own() -> None:
    model = shaken(ContextModel([1.0] * CHANNELS, units=8, head_units=4))
    model(fields(2, seed=9), torch.tensor([0.2, 0.4])).sum().backward()
    for kind in ("diagonal", "edge"):
        network = model.networks[kind]
        assert network.level_bias.grad.any(dim=1).all()
        later = network.earlier[:, 0] == 0  # (C, C): no channel sees itself or those behind it
        reached = network.cross.grad.any(dim=1)
        assert not reached[later].any()
        assert reached[~later].all()


@pytest.fixture
def bits_by_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[ContextModel, Tensor], list[NDArray[np.float32]]]:
    """Bits (n, C) of each grid of positions of one image, in coding order."""
    found: list[NDArray[np.float32]] = []
    measure = train.entropy.model.logistic_bits

    def recording(*arguments: Tensor) -> Tensor:
        bits = measure(*arguments)
        found.append(bits.numpy())
        return bits

    monkeypatch.setattr("train.entropy.model.logistic_bits", recording)

    def run(model: ContextModel, image: Tensor) -> list[NDArray[np.float32]]:
        found.clear()
        with torch.no_grad():
            model(image[None], torch.tensor([0.25]))
        return list(found)

    return run


GRIDS = [(order, origin) for order in CONTEXT_PASSES for origin in order.origins]


@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_a_symbol_changes_nothing_that_was_coded_before_it(
    grid: int, bits_by_pass: Callable[[ContextModel, Tensor], list[NDArray[np.float32]]]
) -> None:
    model = shaken(ContextModel([1.0] * CHANNELS, units=8, head_units=4))
    image = rounded(fields(1, seed=10), torch.tensor([0.25]))[0]
    order, (row, column) = GRIDS[grid]
    place, channel = (1, 2), 1  # in the grid
    before = bits_by_pass(model, image)
    changed = image.clone()
    changed[channel, row + place[0] * order.period, column + place[1] * order.period] += 0.5
    after = bits_by_pass(model, changed)
    columns = len(range(column, SIDE, order.period))
    position = place[0] * columns + place[1]
    differs = [a != b for a, b in zip(after, before, strict=True)]
    pass_of = [CONTEXT_PASSES.index(other) for other, _ in GRIDS]
    for number, found in enumerate(differs):
        if number == grid:
            assert found[position, channel:].all()  # itself, and channels that are predicted by it
            assert not found[position, :channel].any()
            assert not np.delete(found, position, axis=0).any()
        elif pass_of[number] <= pass_of[grid]:
            assert not found.any()
    behind = [f for f, p in zip(differs, pass_of, strict=True) if p > pass_of[grid]]
    assert all(found.any() for found in behind[:2])  # neighbours in the next pass see it
