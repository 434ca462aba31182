"""Schedules have the values of their formulas, and the controller finds its target."""

import math
from collections.abc import Callable

import pytest

from train.schedules import MAX_WEIGHT, MIN_WEIGHT, RateController, kl_factor, ramp, warmup_cosine
from train.sections import LossConfig


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda n: warmup_cosine(n, warmup=9, total=100, final=0.1), {0: 0.1, 8: 0.9, 100: 0.1}),
        (lambda n: warmup_cosine(n, warmup=0, total=100, final=0.0), {0: 1.0, 50: 0.5, 200: 0.0}),
        (lambda n: ramp(n, start=10, length=10), {0: 0.0, 9: 0.0, 10: 0.1, 19: 1.0, 99: 1.0}),
        (lambda n: ramp(n, start=0, length=0), {0: 1.0}),
    ],
)
def test_schedules(schedule: Callable[[int], float], expected: dict[int, float]) -> None:
    assert {n: schedule(n) for n in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kl_warmup": 100}, {0: 1.0, 50: 1.0}),
        ({"kl_schedule": "linear", "kl_warmup": 100}, {0: 0.0, 25: 0.25, 100: 1.0, 900: 1.0}),
        (
            {"kl_schedule": "cyclical", "kl_warmup": 50, "kl_cycle": 200},
            {0: 0.0, 25: 0.5, 50: 1.0, 199: 1.0, 200: 0.0, 225: 0.5, 1050: 1.0},
        ),
    ],
)
def test_kl_factor(settings: dict[str, object], expected: dict[int, float]) -> None:
    config = LossConfig(**settings)
    assert {n: kl_factor(n, config) for n in expected} == pytest.approx(expected)


def controller(**settings: float) -> RateController:
    return RateController(LossConfig(kl_target=2.0, **settings))


@pytest.mark.parametrize("start", [1e-6, 10.0])
def test_the_controller_brings_a_rate_to_its_target(start: float) -> None:
    """Of a rate that falls with the weight as that of a Gaussian channel does."""
    control = controller(kl_weight=start, kl_controller_gain=0.1)
    for _ in range(400):
        control.update(0.5 * math.log2(1 + 0.15 / control.weight))
    assert control.weight == pytest.approx(0.15 / (2**4 - 1), rel=1e-3)


def test_one_update_moves_the_weight_by_the_clamped_relative_error() -> None:
    rates = {2.0: 0.0, 3.0: 0.5, 4.0: 1.0, 400.0: 1.0, 0.0: -1.0}
    for rate, error in rates.items():
        control = controller(kl_weight=1e-2, kl_controller_gain=0.01)
        control.update(rate)
        assert control.weight == pytest.approx(1e-2 * math.exp(0.01 * error))


@pytest.mark.parametrize(("rate", "bound"), [(0.0, MIN_WEIGHT), (100.0, MAX_WEIGHT)])
def test_the_weight_is_bounded(rate: float, bound: float) -> None:
    control = controller(kl_weight=1.0, kl_controller_gain=1.0)
    for _ in range(50):
        control.update(rate)
    assert control.weight == bound


def test_the_controller_goes_on_from_its_state() -> None:
    first, second = controller(kl_weight=0.3), controller(kl_weight=0.1)
    first.update(2.7)
    second.load_state_dict(first.state_dict())
    for control in (first, second):
        control.update(1.1)
    assert second.weight == first.weight
