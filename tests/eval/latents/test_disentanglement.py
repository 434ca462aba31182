"""The gap is near 1 for latents that are the factors, near 0 for mixtures of them."""

import numpy as np
import pytest

from eval.latents.disentanglement import mutual_information_gap


@pytest.fixture
def factors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, [4, 10, 6], (4000, 3))


def test_a_latent_for_each_factor(factors: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(size=(4000, 2))
    found = mutual_information_gap(np.concatenate([factors, noise], axis=1), factors)
    assert found.gap > 0.9
    assert np.argmax(found.information, axis=0).tolist() == [0, 1, 2]
    assert found.information[3:].max() < 0.05


def test_a_factor_in_two_latents_has_no_gap(factors: np.ndarray) -> None:
    found = mutual_information_gap(np.concatenate([factors, factors * 2.0], axis=1), factors)
    assert found.gap == pytest.approx(0, abs=1e-9)
    assert found.information.max() > 0.9


def test_a_rotation_closes_the_gap(factors: np.ndarray) -> None:
    unit = (factors - factors.mean(axis=0)) / factors.std(axis=0)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    assert mutual_information_gap(unit @ turn, factors).gap < 0.5
    assert mutual_information_gap(unit, factors).gap > 0.9


def test_latents_that_know_nothing(factors: np.ndarray) -> None:
    noise = np.random.default_rng(3).normal(size=(4000, 5))
    found = mutual_information_gap(noise, factors)
    assert found.gap < 0.02
    constant = mutual_information_gap(np.zeros((4000, 2)), factors)
    assert constant.information.max() < 1e-9
