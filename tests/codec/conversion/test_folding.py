"""Folded models give normalised latents and the same pictures, whatever the formula."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor

from codec import LatentCodecError
from codec.autoencoder import LatentAutoencoder
from codec.conversion.folding import fold
from codec.conversion.normalization import Formula, Normalization, best_formula
from tests.conftest import TINY

STATISTICS: dict[str, Any] = {
    "scaling_factor": 0.4,
    "shift_factor": 0.3,
    "latents_mean": (0.5, -2.0, 0.1, 1.0),
    "latents_std": (2.0, 5.0, 0.25, 1.5),
}
MEAN, STD = (
    torch.tensor(STATISTICS[name])[None, :, None, None] for name in ("latents_mean", "latents_std")
)


def latent_autoencoder(**settings: Any) -> Any:
    return LatentAutoencoder(**{**TINY, **STATISTICS, **settings})


def kl(**settings: Any) -> Any:
    return AutoencoderKL(
        **{
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            **STATISTICS,
            **settings,
        }
    )


MODELS: dict[str, Callable[[], Any]] = {
    "constant": latent_autoencoder,
    "learned": lambda: latent_autoencoder(posterior_std=None),
    "folded": lambda: latent_autoencoder(posterior_std=None, decoder_in_conv=True),
    "conditional": lambda: latent_autoencoder(num_classes=2),
    "kl": kl,
    "kl-bare": lambda: kl(use_quant_conv=False, use_post_quant_conv=False),
}
FORMULAS: dict[Formula, Callable[[Tensor], Tensor]] = {
    Formula.FACTOR: lambda raw: raw * 0.4,
    Formula.SHIFT: lambda raw: (raw - 0.3) * 0.4,
    Formula.CHANNELS: lambda raw: (raw - MEAN) / STD,
    Formula.XL: lambda raw: (raw - MEAN) * 0.4 / STD,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = MODELS[request.param]().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def image() -> Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def folded_by(model: Any, formula: Formula) -> Any:
    return fold(model, Normalization.by(formula, model.config, 4))


@pytest.mark.parametrize("formula", Formula)
@torch.no_grad()
def test_each_formula_there_and_back(model: Any, formula: Formula) -> None:
    """Raw latents are what the formula makes of the model's, and they decode to its picture."""
    scale = FORMULAS[formula]
    folded = folded_by(model, formula)
    posterior = model.encode(image()).latent_dist
    new = folded.encode(image()).latent_dist
    normalised = scale(posterior.mode())
    close(new.mode(), normalised)
    assert (normalised - posterior.mode()).abs().max() > 0.05
    # edges included: there a 3x3 convolution sees zeros, which are other latents now
    close(folded.decode(normalised).sample, model.decode(posterior.mode()).sample)
    draws = [one.sample(torch.Generator().manual_seed(3)) for one in (posterior, new)]
    close(draws[1], scale(draws[0]))
    ratio = scale(torch.ones(1, 4, 1, 1)) - scale(torch.zeros(1, 4, 1, 1))
    close(new.std, posterior.std * ratio)


@torch.no_grad()
def test_every_pipelines_formula_is_neutral_afterwards(model: Any) -> None:
    config = folded_by(model, Formula.CHANNELS).config
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    assert config.latents_mean is None
    assert config.latents_std is None
    shape = {key for key in model.config if not key.startswith("_")}
    changed = {key for key in shape if config[key] != model.config[key]}
    allowed = {"posterior_std", "decoder_in_conv", "use_post_quant_conv"}
    assert changed <= {*STATISTICS, *allowed}


@torch.no_grad()
def test_folding_twice_is_folding_the_product(model: Any) -> None:
    once = folded_by(model, Formula.CHANNELS)
    second = Normalization((0.1, 0.2, -0.3, 0.0), (0.5, 2.0, 1.0, 4.0))
    twice = fold(once, second)
    mean, std = (torch.tensor(part)[None, :, None, None] for part in (second.mean, second.std))
    raw_latents = model.encode(image()).latent_dist.mode()
    normalised = (FORMULAS[Formula.CHANNELS](raw_latents) - mean) / std
    close(twice.encode(image()).latent_dist.mode(), normalised)
    close(twice.decode(normalised).sample, model.decode(raw_latents).sample)


@torch.no_grad()
def test_the_model_itself_stays(model: Any) -> None:
    before = {name: one.clone() for name, one in model.state_dict().items()}
    folded_by(model, Formula.CHANNELS)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert model.config.scaling_factor == 0.4


@torch.no_grad()
def test_measured_statistics_give_unit_variance(model: Any) -> None:
    latents = model.encode(image()).latent_dist.mode().double().movedim(1, 0).flatten(1)
    measured = Normalization(tuple(latents.mean(1).tolist()), tuple(latents.std(1).tolist()))
    new = fold(model, measured).encode(image()).latent_dist.mode().movedim(1, 0).flatten(1)
    np.testing.assert_allclose(new.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(new.std(1), 1, atol=1e-3)


@torch.no_grad()
def test_tiles_of_a_folded_model_match_the_whole() -> None:
    torch.manual_seed(0)
    folded = folded_by(latent_autoencoder().eval(), Formula.CHANNELS)
    whole = folded(image()).sample
    folded.tile_cells = 3
    folded.enable_tiling()
    close(folded(image()).sample, whole)


REFUSED = [
    lambda: latent_autoencoder(bottleneck="vq", codebook_size=16),
    lambda: latent_autoencoder(bottleneck="fsq", fsq_levels=(8, 5, 5, 5)),
    lambda: AutoencoderTiny(latent_channels=4),
    lambda: VQModel(latent_channels=4, num_vq_embeddings=16),
]


@pytest.mark.parametrize("make", REFUSED)
def test_other_models_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(LatentCodecError, match="no other network takes a scale and a shift"):
        fold(make(), Normalization((0.0,) * 4, (1.0,) * 4))


def test_the_best_formula() -> None:
    assert best_formula(STATISTICS) is Formula.CHANNELS
    assert best_formula({"scaling_factor": 0.2, "latents_mean": None}) is Formula.SHIFT
    assert best_formula({"scaling_factor": 1.0, "shift_factor": 0.1}) is Formula.SHIFT
    with pytest.raises(LatentCodecError, match="give --stats DATASET"):
        best_formula({"scaling_factor": 1.0, "shift_factor": None})


WRONG: list[tuple[Formula, Mapping[str, Any], str]] = [
    (Formula.CHANNELS, {"latents_mean": None, "latents_std": None}, "found latents_mean None"),
    (Formula.CHANNELS, {"latents_std": (1.0,)}, "expected a number for each of 4 channels"),
    (Formula.CHANNELS, {"latents_std": (1.0, 0.0, 1.0, 1.0)}, "deviations above 0"),
    (Formula.CHANNELS, {"latents_mean": (math.nan,) * 4}, "expected finite numbers"),
    (Formula.SHIFT, {"scaling_factor": 0.0}, "found scaling_factor 0"),
]


@pytest.mark.parametrize(("formula", "changes", "message"), WRONG)
def test_wrong_statistics(formula: Formula, changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(LatentCodecError, match=message):
        Normalization.by(formula, {**STATISTICS, **changes}, 4)
