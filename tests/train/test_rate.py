"""A charge for the latents' bits: who learns from it, and what it does not go with."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from codec.errors import LatentCodecError
from train.data import to_unit
from train.held_out import HeldOut
from train.meter import Meter
from train.rate import (
    MEASURED_CROPS,
    Rate,
    add_noise,
    codec_step,
    draw_steps,
    rate_figures,
    round_through,
)
from train.sections import RateConfig, TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
CHARGED: dict[str, Any] = {"rate_weight": 1.0, "rate_units": 8, "rate_head_units": 4}
NOTHING_ELSE = {"l1_weight": 0.0, "perceptual_weight": 0.0, "kl_weight": 0.0}
FINE_STEP = 0.02
"""Below the deviations of an untrained encoder's latents, which are not clamped to it then."""
STILL = {"weight_decay": 0.0, "warmup_images": 0}


def make_rate(seed: int = 0, channels: int = 3, **settings: Any) -> Rate:
    config = RateConfig(**{**CHARGED, **settings})
    return Rate(config, channels, 0.5, lambda: torch.ones(channels), Accelerator(cpu=True), seed)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_latents(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 5, 6, generator=generators(seed)[0])


def teach(rate: Rate, steps: int = 5) -> None:
    """Enough for weights that were zero to be something."""
    for number in range(steps):
        rate.zero_grad()
        quantised = rate.quantise(random_latents(seed=number), generators(number, 9), 1024)
        rate.learn(quantised, 1.0, True)
        rate.clip()
        rate.step()


def charged_trainer(make_config: MakeConfig, **sections: dict[str, Any]) -> Trainer:
    sections["rate"] = {**CHARGED, **sections.get("rate", {})}
    return Trainer(make_config(**sections))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of codec and twin, by name."""
    assert trainer.objective.rate is not None
    networks = {"codec": trainer.model, "twin": trainer.objective.rate.network}
    return {
        f"{which}.{name}": parameter.grad.clone()
        for which, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"encoder", "twin"}),
        ({"rate_quantization": "round"}, {"encoder", "twin"}),
        ({"rate_start": 8, "rate_warmup": 8}, {"twin"}),
        ({"rate_start": 8, "rate_warmup": 6}, set()),
    ],
    ids=["noise", "round", "warming up", "waiting"],
)
def test_what_a_step_moves(
    settings: dict[str, Any], expected: set[str], make_config: MakeConfig
) -> None:
    trainer = charged_trainer(make_config, rate=settings, loss=NOTHING_ELSE, optimizer=STILL)
    assert trainer.objective.rate is not None
    parts = {
        "encoder": trainer.model.encoder,
        "decoder": trainer.model.decoder,
        "twin": trainer.objective.rate.network.twin,
    }

    def weights() -> dict[str, list[Tensor]]:
        return {n: [p.detach().clone() for p in part.parameters()] for n, part in parts.items()}

    before = weights()
    assert trainer.stepper.run(trainer._batches(), 0, Meter()).is_finite
    after = weights()
    assert {name for name in parts if not all(map(torch.equal, before[name], after[name]))} == (
        expected
    )


def test_the_weight_is_for_the_encoder_alone(make_config: MakeConfig) -> None:
    found = []
    for weight in (1.0, 3.0):
        settings = {"rate_weight": weight}
        unclipped = {**STILL, "max_grad_norm": 1e9}
        trainer = charged_trainer(
            make_config, rate=settings, loss=NOTHING_ELSE, optimizer=unclipped
        )
        trainer.stepper.run(trainer._batches(), 0, Meter())
        found.append(gradients(trainer))
    for name, gradient in found[0].items():
        expected = 3 * gradient if name.startswith("codec.encoder") else gradient
        assert torch.allclose(found[1][name], expected, rtol=1e-4, atol=1e-9), name
    reached = {name.split(".")[1] for name, gradient in found[0].items() if gradient.any()}
    assert reached == {"encoder", "twin"}


def test_the_term_has_its_gradient() -> None:
    """That of differences: what is coded counts, and what others are predicted from."""
    rate = make_rate()
    teach(rate)
    latents = random_latents(seed=7).requires_grad_()

    def term(shift: Tensor | float) -> Tensor:
        return rate.encoder_term(rate.quantise(latents + shift, generators(1, 2), 1))

    (slope,) = torch.autograd.grad(term(0.0), latents)
    assert all(p.grad is not None and p.requires_grad for p in rate.network.parameters())
    for place in ((0, 0, 0, 0), (1, 2, 4, 4), (0, 1, 2, 3)):
        shift = torch.zeros_like(latents)
        shift[place] = 1e-2
        with torch.no_grad():
            difference = (term(shift) - term(-shift)) / 2e-2
        assert float(slope[place]) == pytest.approx(float(difference), rel=0.05, abs=2e-3)


def test_the_twin_learns_in_float32() -> None:
    rate, latents, steps = make_rate(), random_latents(), torch.tensor([0.5, 0.25])
    teach(rate)
    with torch.no_grad():
        expected = rate.network(latents, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = rate.network(latents.bfloat16(), steps)
            assert torch.equal(rate.network(latents, steps), expected)
    assert found.dtype == torch.float32


def test_noise_is_uniform_and_rounding_whole() -> None:
    latents, steps = 3 * random_latents(count=64), torch.linspace(0.1, 2.0, 64)
    widths = steps[:, None, None, None]
    noise = (add_noise(latents, steps, generators(*range(64))) - latents) / widths
    assert float(noise.abs().max()) < 0.5 + 1e-4
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.05)
    latents.requires_grad_()
    rounded = round_through(latents, steps)
    rounded.sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad == 1).all())
    symbols = (rounded / widths).detach()
    assert float((symbols - symbols.round()).abs().max()) < 1e-4
    assert float((rounded - latents).detach().abs().div(widths).max()) < 0.5 + 1e-4


def test_steps_are_log_uniform() -> None:
    logs = torch.log2(draw_steps(0.5, 4.0, generators(*range(2000))))
    assert float(logs.min()) >= -3
    assert float(logs.max()) <= 1
    assert float(logs.mean()) == pytest.approx(-1, abs=0.1)
    assert float(logs.var()) == pytest.approx(16 / 12, rel=0.1)
    assert torch.equal(draw_steps(0.5, 1.0, generators(1, 2)), torch.tensor([0.5, 0.5]))


def test_a_samples_step_and_noise_are_its_own() -> None:
    rate, latents = make_rate(), random_latents(count=3)
    together = rate.quantise(latents, generators(5, 6, 7), 64)
    alone = rate.quantise(latents[2:], generators(7), 64)
    assert torch.equal(together.latents[2:], alone.latents)
    assert torch.equal(together.steps[2:], alone.steps)
    assert len(together.steps.unique()) == 3


def test_deviations_are_measured_once_it_learns(make_config: MakeConfig) -> None:
    settings = {"rate_start": 4, "rate_warmup": 2, "rate_step": FINE_STEP}
    trainer = charged_trainer(make_config, rate=settings)
    rate = trainer.objective.rate
    assert rate is not None
    batches = trainer._batches()
    trainer.stepper.run(batches, 0, Meter())
    assert rate.network.twin.deviations.tolist() == [1.0] * 4
    crops = trainer.dataset.batch(range(MEASURED_CROPS)).pixels
    with torch.no_grad():
        latents = trainer.model.encode(to_unit(crops, torch.device("cpu"))).latent_dist.mean
    expected = latents.std(dim=(0, 2, 3))
    assert float(expected.min()) > FINE_STEP
    trainer.stepper.run(batches, 2, Meter())
    assert torch.allclose(rate.network.twin.deviations, expected, rtol=1e-4)
    trainer.stepper.run(batches, 4, Meter())
    assert torch.allclose(rate.network.twin.deviations, expected, rtol=1e-4)
    assert torch.equal(
        rate.state_dict()["network"]["twin.deviations"], rate.network.twin.deviations
    )


def test_held_out_bits(make_config: MakeConfig, pixels: Callable[..., Any]) -> None:
    trainer = charged_trainer(make_config)
    rate = trainer.objective.rate
    assert rate is not None
    assert not rate.has_learned
    trainer.run()
    assert rate.has_learned
    crops = torch.stack([torch.from_numpy(pixels(64, 64, k)).permute(2, 0, 1) for k in range(9)])
    held_out = HeldOut(crops, torch.full((9,), -1), "nine images")
    found = rate_figures(trainer.model, rate, held_out, trainer.accelerator)
    with torch.no_grad():
        latents = trainer.model.encode(crops / 127.5 - 1).latent_dist.mean
        rounded = torch.round(latents / rate.step_size) * rate.step_size
        bits = rate.network.twin(rounded, torch.full((9,), rate.step_size))
    assert found == {"val/context_bpp": pytest.approx(float(bits.mean()) / 64**2, rel=1e-4)}


def test_where_the_step_comes_from(make_config: MakeConfig, model_dir: Path) -> None:
    def step(**sections: dict[str, Any]) -> float:
        found = charged_trainer(make_config, **sections).objective.rate
        assert found is not None
        return found.step_size

    assert step() == pytest.approx(0.14 * math.sqrt(12))
    tuned = {"init_from": str(model_dir)}
    stated = json.loads((model_dir / "codec.json").read_text())["quality_50_step"]
    assert step(model=tuned) == pytest.approx(stated, abs=2**-17)
    assert codec_step(model_dir) == step(model=tuned)
    assert step(model=tuned, regularizer={"quantize_step": 0.7}) == 0.7
    assert step(model=tuned, regularizer={"quantize_step": 0.7}, rate={"rate_step": 0.3}) == 0.3


VECTOR = {
    "block_out_channels": [8, 8, 8, 8, 8, 16],
    "encoder_layers": [0, 0, 1, 0, 0, 1],
    "decoder_layers": [0, 0, 1, 0, 0, 1],
}
LEARNED = {"posterior_std": None}
WRONG: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "a frozen encoder": (
        {"model": {"init_from": "kl-f8d4", "freeze_encoder": True}},
        "needs an encoder that learns",
    ),
    "vq": ({"model": {"bottleneck": "vq"}}, "needs model.bottleneck gaussian"),
    "fsq": ({"model": {"bottleneck": "fsq"}}, "needs model.bottleneck gaussian"),
    "vq2": ({"model": {"bottleneck": "vq2"}}, "needs model.bottleneck gaussian"),
    "a controller": ({"loss": {"kl_target": 1.0}}, "both move the rate"),
    "single vectors": ({"model": VECTOR}, "needs latents on a grid: data.crop_size 32"),
    "nothing against shrinking": (
        {"model": LEARNED, "loss": {"kl_weight": 0.0}, "rate": {"rate_step": 0.5}},
        "keeps latents from shrinking",
    ),
    "a step of nowhere": ({"model": LEARNED}, "set rate.rate_step, in raw latent units"),
    "a warm-up before the start": (
        {"rate": {"rate_start": 100, "rate_warmup": 200}},
        "raise rate.rate_start",
    ),
    "a range below 1": ({"rate": {"rate_step_range": 0.5}}, "rate.rate_step_range: found 0.5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_is_refused(case: str, make_config: MakeConfig, tmp_path: Path) -> None:
    sections, message = WRONG[case]
    with pytest.raises(LatentCodecError, match=message):
        charged_trainer(make_config, **sections)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["codes", "a single vector"])
def test_the_latents_of_a_loaded_model_must_fit(
    kind: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    model = {"model": {"bottleneck": "vq", "codebook_size": 8} if kind == "codes" else VECTOR}
    Trainer(make_config(**model)).model.save_pretrained(tmp_path / "plain")
    with pytest.raises(LatentCodecError, match=f"whose latents are {kind}"):
        charged_trainer(make_config, model={"init_from": str(tmp_path / "plain")})


@pytest.mark.parametrize(
    ("before", "message"),
    [({"rate_weight": 0.0}, "has no state of rate"), ({"rate_units": 9}, "another kind of rate")],
)
def test_a_resume_under_other_settings(
    before: dict[str, Any], message: str, make_config: MakeConfig
) -> None:
    charged_trainer(make_config, rate=before, run={"max_images": 2}).run()
    with pytest.raises(LatentCodecError, match=message):
        Trainer(make_config(rate=CHARGED), resume=True)


def test_the_weights_of_the_codec_do_not_depend_on_the_twins_seed(make_config: MakeConfig) -> None:
    """The twin draws its first values without touching the codec's random numbers."""
    free = Trainer(make_config())
    charged = charged_trainer(make_config)
    for one, other in zip(free.model.parameters(), charged.model.parameters(), strict=True):
        assert torch.equal(one, other)
