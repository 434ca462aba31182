"""Discretised likelihoods add up to 1, and their scale is found again in data drawn from them."""

import math

import numpy as np
import pytest
import torch

from eval.latents.likelihood import SCALE_RANGE, Likelihood, fit_scale, log_probability

LIKELIHOODS: tuple[Likelihood, ...] = ("laplace", "logistic", "gaussian")
LEVELS = torch.arange(256)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("scale", [0.02, 0.5, 4.0, 90.0, 1000.0])
@pytest.mark.parametrize("y", [-1.3, -1.0, -0.2, 0.333, 1.0, 1.2])
def test_probabilities_add_up_to_one(likelihood: Likelihood, scale: float, y: float) -> None:
    found = log_probability(LEVELS, torch.full((256,), y), scale, likelihood)
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert found.isfinite().all()  # far tails too: -1e9 nats rather than log(0)


def test_a_probability_written_out() -> None:
    """Level 130 under a Laplace of scale 2 about level 127.5: between 129.5 and 130.5."""
    found = log_probability(torch.tensor([130]), torch.tensor([0.0]), 2.0, "laplace")
    assert found.item() == pytest.approx(math.log(0.5 * (math.exp(-1.0) - math.exp(-1.5))))
    at_end = log_probability(torch.tensor([0]), torch.tensor([0.0]), 2.0, "laplace")
    assert at_end.item() == pytest.approx(math.log(0.5) - 127 / 2)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("scale", [0.8, 6.0])
def test_a_known_scale_is_found_again(likelihood: Likelihood, scale: float) -> None:
    rng = np.random.default_rng(0)
    draw = {"laplace": rng.laplace, "logistic": rng.logistic, "gaussian": rng.normal}[likelihood]
    centre = rng.uniform(-20, 275, 40_000)  # some beyond black and white, where tails are open
    x = torch.from_numpy(np.clip(np.round(centre + draw(0, scale, centre.shape)), 0, 255))
    y = torch.from_numpy(centre / 127.5 - 1)
    assert fit_scale(x.byte(), y, likelihood) == pytest.approx(scale, rel=0.03)


def test_the_scale_has_ends() -> None:
    assert fit_scale(LEVELS, LEVELS / 127.5 - 1) == pytest.approx(SCALE_RANGE[0], rel=1e-3)
