"""Processes, samplers, guidance and seeds, without any training."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from codec.prior import denoiser as denoisers
from codec.prior.denoiser import Condition, DenoiserShape, build_denoiser, predict
from codec.prior.directory import PriorError
from codec.prior.process import TIMES, Objective, Process, training_scheduler
from codec.prior.sampling import (
    Start,
    denoise,
    guided,
    make_sampler,
    seeded_noise,
    slerp,
)
from tests.codec.prior.tiny_priors import SHAPES, SIDE, Oracle, tiny_denoiser

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
SAMPLERS = [
    (objective, name)
    for objective in OBJECTIVES
    for name in ("auto", "euler", "dpm++", "unipc", *(() if objective == "flow" else ("ddim",)))
]
ONLY = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


def oracle(objective: Objective) -> Any:
    model = Oracle(ONLY, Process.of(objective))
    model.config = SimpleNamespace(in_channels=4, get=lambda key: None)
    return model


@pytest.mark.parametrize(("objective", "name"), SAMPLERS)
def test_every_sampler_finds_the_only_image(objective: Objective, name: Any) -> None:
    scheduler = training_scheduler(objective, "scaled_linear", False)
    noise = seeded_noise([3, 4], ONLY.shape[1:])
    found = denoise(oracle(objective), make_sampler(scheduler, name), noise, Condition(), steps=40)
    # Those for a discrete time end a little before 0.
    assert (found - ONLY).abs().max() < 0.1
    assert (found - ONLY).abs().mean() < 0.03


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_process_is_that_of_the_scheduler(objective: Objective, schedule: str) -> None:
    process = Process.of(objective, schedule)
    scheduler = training_scheduler(objective, schedule, False)
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    times = process.times(torch.tensor([0.1, 0.5, 0.9]))
    if objective == "flow":
        scheduler.set_timesteps(timesteps=times.tolist())
        wanted = scheduler.scale_noise(latents, times, noise)
    else:
        wanted = scheduler.add_noise(latents, noise, times.long())
    torch.testing.assert_close(process.mix(latents, noise, times), wanted)
    if objective == "v_prediction":
        velocity = scheduler.get_velocity(latents, noise, times.long())
        torch.testing.assert_close(process.target(latents, noise, times), velocity)


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_image(objective: Objective) -> None:
    process, gamma = Process.of(objective), 5.0
    latents, noise = torch.randn(4, 4, 8, 8).double(), torch.randn(4, 4, 8, 8).double()
    times = torch.tensor([5.0, 200.0, 600.0, 990.0])
    a, b = (share.double() for share in process.coefficients(times))
    noisy = a * latents + b * noise
    found = process.target(latents, noise, times).double() + 0.1 * torch.randn(4, 4, 8, 8)
    image = (noisy - b * found) / a if objective == "epsilon" else a * noisy - b * found
    error = (found - process.target(latents, noise, times)).square().mean((1, 2, 3))
    wanted = (image - latents).square().mean((1, 2, 3))
    wanted = wanted * process.signal_to_noise(times).clamp(max=gamma)
    weights = process.min_snr_weights(times, gamma)
    torch.testing.assert_close((weights * error).float(), wanted.float(), rtol=1e-3, atol=1e-6)


def test_times_cover_the_whole_way() -> None:
    places = torch.tensor([0.0, 0.9999999])
    assert Process.of("epsilon").times(places).tolist() == [0, TIMES - 1]
    assert Process.of("flow").times(places)[1] == pytest.approx(TIMES, abs=0.01)


def test_a_flow_has_no_ddim() -> None:
    with pytest.raises(PriorError, match="sampler ddim for a prior of objective flow"):
        make_sampler(training_scheduler("flow", "linear", False), "ddim")


@pytest.mark.parametrize("name", ["unet", "unet-patches", "dit"])
def test_a_seed_gives_its_image_at_any_batch_size(name: str) -> None:
    model = tiny_denoiser(name)
    seeds, labels = [5, 6, 7], torch.tensor([0, 1, 2])

    def draw(places: list[int]) -> Tensor:
        scheduler = make_sampler(training_scheduler("flow", "linear", False))
        noise = seeded_noise([seeds[place] for place in places], (4, SIDE, SIDE))
        return denoise(model, scheduler, noise, Condition(labels[places]), steps=5, guidance=2.0)

    together = draw([0, 1, 2])
    apart = torch.cat([draw([place]) for place in range(3)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_condition_matters(name: str) -> None:
    model, noisy = tiny_denoiser(name), torch.randn(2, 4, SIDE, SIDE)
    times = torch.tensor([100.0, 700.0])
    if name.endswith("-free"):
        conditions = [Condition(), Condition()]
    elif name.endswith("-text"):
        conditions = [Condition(embeddings=torch.randn(2, 5, 6)) for _ in range(2)]
    else:
        conditions = [Condition(torch.tensor([0, 1])), Condition(torch.tensor([1, 3]))]
    with torch.no_grad():
        first, second = (predict(model, noisy, times, condition) for condition in conditions)
        other_time = predict(model, noisy, times + 100, conditions[0])
    assert first.shape == noisy.shape
    assert (first != other_time).any()
    assert torch.equal(first, second) == name.endswith("-free")


def test_guidance_goes_on_from_no_class() -> None:
    model, noisy = tiny_denoiser("unet"), torch.randn(2, 4, SIDE, SIDE)
    condition, time = Condition(torch.tensor([0, 2])), torch.tensor(500.0)
    with torch.no_grad():
        none, one, three = (guided(model, noisy, time, condition, g) for g in (0.0, 1.0, 3.0))
        without = guided(model, noisy, time, Condition(torch.tensor([3, 3])), 1.0)
    torch.testing.assert_close(none, without, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(three, without + 3 * (one - without), rtol=1e-3, atol=1e-4)


def test_labels_are_dropped_by_the_training_alone() -> None:
    model = build_denoiser(SHAPES["dit"]).train()
    noisy, times = torch.randn(64, 4, SIDE, SIDE), torch.full((64,), 500.0)
    labels = torch.zeros(64, dtype=torch.int64)
    first, second = (predict(model, noisy, times, Condition(labels)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_start_in_the_middle_keeps_what_little_strength_leaves() -> None:
    model = tiny_denoiser("unet")
    known, noise = torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 4, SIDE, SIDE)
    condition = Condition(torch.tensor([0]))

    def distance(strength: float) -> float:
        scheduler = make_sampler(training_scheduler("flow", "linear", False))
        start = Start(known, strength)
        steps = []
        found = denoise(
            model, scheduler, noise, condition, steps=20, start=start,
            advance=lambda: steps.append(1),
        )  # fmt: skip
        assert len(steps) == round(20 * strength)
        return float((found - known).abs().mean())

    assert distance(0.1) < distance(0.4) < distance(0.9)
    with pytest.raises(PriorError, match="found strength 0"):
        Start(known, 0.0)


def test_slerp_stays_on_the_sphere() -> None:
    first, second = seeded_noise([1, 2], (4, 16, 16))
    way = slerp(first, second, [0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(way[0], first)
    torch.testing.assert_close(way[-1], second)
    norms = way.flatten(1).norm(dim=1)
    assert norms.min() > 0.99 * min(first.norm(), second.norm())
    torch.testing.assert_close(slerp(first, first, [0.3])[0], first)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_size": 3}, "patches of 3 divide"),
        ({"widths": (24, 32)}, "multiples of 16"),
        ({"widths": (16, 16, 16, 16, 16)}, "that 16 divides"),
        ({"num_classes": 3, "embedding_width": 4}, "one kind of condition"),
        ({"architecture": "dit", "widths": (32, 32)}, "one width that is a multiple"),
    ],
)
def test_sizes_that_do_not_go_together(changes: dict[str, Any], sentence: str) -> None:
    settings = {
        "architecture": "unet", "channels": 4, "sample_size": 8, "widths": (16, 32), "layers": 1,
        "head_width": 16, **changes,
    }  # fmt: skip
    with pytest.raises(PriorError, match=sentence):
        build_denoiser(DenoiserShape(**settings))


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_what_a_denoiser_knows_is_read_from_it(name: str) -> None:
    model, shape = tiny_denoiser(name), SHAPES[name]
    assert denoisers.num_classes_of(model) == shape.num_classes
    assert denoisers.embedding_width_of(model) == shape.embedding_width
    assert denoisers.patch_of(model, 4) == shape.patch_size
