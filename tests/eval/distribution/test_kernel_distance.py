"""The kernel distance against its definition, its interval, and what it does not depend on."""

import numpy as np
import pytest

from eval.distribution.kernel_distance import equal_numbers, kernel_distance


def normal(number: int, shift: float = 0.0, seed: int = 0, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (number, width))


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def by_definition(first: np.ndarray, second: np.ndarray, paired: bool = False) -> float:
    """Equation 3 of Gretton et al. 2012; paired, equation 4, which leaves out i = j everywhere."""
    n = len(first)
    within = sum(
        kernel(part[i], part[j])
        for part in (first, second)
        for i in range(n)
        for j in range(n)
        if i != j
    ) / (n * (n - 1))
    across = [
        kernel(first[i], second[j]) for i in range(n) for j in range(n) if not paired or i != j
    ]
    return within - 2 * sum(across) / len(across)


@pytest.mark.parametrize("paired", [False, True])
def test_value_is_that_of_the_definition(paired: bool) -> None:
    first, second = normal(9), normal(9, 0.5, seed=1)
    found = kernel_distance(first, second, paired=paired, draws=10)
    assert found.value == pytest.approx(by_definition(first, second, paired), rel=1e-12)
    assert found.num_images == 9


def test_halves_of_one_set_are_near_and_shifted_sets_far() -> None:
    one = normal(400, width=32)
    same = kernel_distance(one[:200], one[200:])
    far = kernel_distance(one[:200], one[200:] + 0.3)
    assert same.low < 0 < same.high
    assert far.low > same.high
    assert far.low < far.value < far.high


def test_order_and_sides_do_not_matter() -> None:
    first, second = normal(30), normal(30, 0.4, seed=1)
    shuffled = second[np.random.default_rng(3).permutation(30)]
    expected = kernel_distance(first, second).value
    assert kernel_distance(first, shuffled).value == pytest.approx(expected)
    assert kernel_distance(second, first).value == pytest.approx(expected)


def test_it_is_unbiased() -> None:
    values = [
        kernel_distance(normal(8, seed=2 * k), normal(8, seed=2 * k + 1), draws=2).value
        for k in range(600)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error


def test_the_interval_covers_what_it_should() -> None:
    # Two kinds of vectors, and their distance from sets so large that its own error is small.
    large = [(normal(2000, seed=900 + k, width=3), normal(2000, 0.8, 950 + k, 3)) for k in range(5)]
    truth = np.mean([kernel_distance(*pair, draws=1).value for pair in large])
    covered = []
    for k in range(80):
        first, second = normal(60, seed=2 * k, width=3), normal(60, 0.8, 2 * k + 1, 3)
        found = kernel_distance(first, second, draws=150, seed=k)
        covered.append(found.low <= truth <= found.high)
    assert 0.87 <= np.mean(covered) <= 1.0


def test_pairs_that_are_left_in_would_make_reconstructions_too_near() -> None:
    originals = normal(40, width=16)
    made = originals + 0.1 * normal(40, seed=5, width=16)
    paired = kernel_distance(originals, made, paired=True)
    assert paired.value > kernel_distance(originals, made).value
    assert paired.low <= 0 <= paired.high


def test_equal_numbers_are_drawn_by_the_seed() -> None:
    first, second = np.arange(20.0)[:, None], np.arange(7.0)[:, None]
    drawn, whole = equal_numbers(first, second, seed=1)
    assert whole is second
    assert len(set(drawn[:, 0])) == 7
    assert np.array_equal(drawn, equal_numbers(first, second, seed=1)[0])
    assert not np.array_equal(drawn, equal_numbers(first, second, seed=2)[0])
    assert [len(part) for part in equal_numbers(first, second, most=3)] == [3, 3]


def test_two_images_of_each_set_are_enough() -> None:
    found = kernel_distance(normal(2), normal(2, seed=1))
    assert np.isfinite([found.value, found.low, found.high]).all()


@pytest.mark.parametrize(("n", "m"), [(3, 4), (1, 1)])
def test_unequal_or_too_few_images_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="expected as many images of each set, at least 2"):
        kernel_distance(normal(n), normal(m))
