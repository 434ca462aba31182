"""Between measured points, never beyond them."""

import math

import pytest

from eval.interpolation import least_lead, rate_for, value_at

CURVE = [(0.4, 0.1), (0.1, 0.5), (0.2, 0.3)]  # in no order


def test_halfway_is_at_the_geometric_mean_of_the_rates() -> None:
    assert value_at(CURVE, math.sqrt(0.1 * 0.2)) == pytest.approx(0.4)
    assert value_at(CURVE, 0.2 * 2**0.25) == pytest.approx(0.25)


def test_measured_points_come_back_exactly() -> None:
    for rate, value in CURVE:
        assert value_at(CURVE, rate) == value
        assert rate_for(CURVE, value) == rate


@pytest.mark.parametrize("rate", [0.0999, 0.4001])
def test_no_value_outside_the_measured_rates(rate: float) -> None:
    assert value_at(CURVE, rate) is None


def test_the_rate_for_a_value_is_the_other_way_round() -> None:
    for value in (0.49, 0.4, 0.3, 0.12):
        rate = rate_for(CURVE, value)
        assert rate is not None
        assert value_at(CURVE, rate) == pytest.approx(value)


@pytest.mark.parametrize("value", [0.51, 0.099])
def test_no_rate_for_values_that_were_not_reached(value: float) -> None:
    assert rate_for(CURVE, value) is None


def test_a_curve_that_rises_again_counts_where_it_first_comes_down() -> None:
    bumpy = [(1.0, 4.0), (2.0, 2.0), (4.0, 3.0), (8.0, 1.0)]
    rate = rate_for(bumpy, 2.5)
    assert rate is not None
    assert 1 < rate < 2


def test_one_point_and_none() -> None:
    assert value_at([(0.3, 7.0)], 0.3) == 7.0
    assert value_at([(0.3, 7.0)], 0.4) is None
    assert rate_for([(0.3, 7.0)], 7.0) == 0.3
    assert rate_for([(0.3, 7.0)], 6.0) is None
    assert value_at([], 0.3) is None
    assert rate_for([], 7.0) is None


def test_two_files_of_one_size_do_not_divide_by_zero() -> None:
    twice = [(0.1, 0.5), (0.1, 0.4), (0.2, 0.3)]
    assert value_at(twice, 0.1) in (0.4, 0.5)
    rate = rate_for(twice, 0.35)
    assert rate is not None
    assert 0.1 < rate < 0.2


def test_the_least_lead_is_found_between_the_other_ones_points() -> None:
    ours = [(0.1, 0.5), (0.2, 0.4), (0.4, 0.1)]  # a corner at 0.2, where other has no point
    other = [(0.1, 0.9), (0.4, 0.3)]
    lead = least_lead(ours, other, up_to=1.0)
    assert lead is not None
    assert (lead.lowest_rate, lead.highest_rate, lead.rate) == (0.1, 0.4, 0.2)
    assert lead.least == pytest.approx(0.6 - 0.4)


def test_rates_beyond_the_limit_do_not_count() -> None:
    lead = least_lead([(0.1, 0.5), (0.4, 0.4)], [(0.1, 0.9), (0.4, 0.1)], up_to=0.1)
    assert lead is not None
    assert (lead.highest_rate, lead.least) == (0.1, pytest.approx(0.4))


def test_our_largest_file_may_be_used_at_larger_rates() -> None:
    lead = least_lead([(0.1, 0.5), (0.2, 0.3)], [(0.1, 0.9), (0.4, 0.1)], up_to=0.5)
    assert lead is not None
    assert (lead.highest_rate, lead.rate) == (0.4, 0.4)
    assert lead.least == pytest.approx(0.1 - 0.3)


def test_curves_without_a_common_rate_are_not_compared() -> None:
    assert least_lead([(0.5, 1.0)], [(0.1, 1.0), (0.4, 0.5)], up_to=1.0) is None
    assert least_lead([(0.1, 1.0)], [(0.6, 1.0)], up_to=0.5) is None
    assert least_lead([], [(0.6, 1.0)], up_to=0.5) is None
