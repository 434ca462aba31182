"""Statistics equal numpy's over all values, in any grouping, and their errors are honest."""

import json
import random
from functools import reduce
from operator import add

import numpy as np
import pytest

from codec.shards.errors import ShardError
from codec.shards.statistics import LatentStatistics


def images(count: int = 40, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, (count, 2))
    return [
        (rng.normal(rng.normal(3, 1), 2, (3, *size)) * [[[1]], [[5]], [[0.01]]]).astype(np.float32)
        for size in sizes
    ]


def total(parts: list[np.ndarray]) -> LatentStatistics:
    return reduce(add, map(LatentStatistics.of, parts), LatentStatistics())


def test_they_equal_numpy_over_all_values() -> None:
    parts = images()
    found = total(parts)
    values = np.concatenate([part.reshape(3, -1) for part in parts], axis=1).astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(found.std, values.std(axis=1), rtol=1e-13)
    assert found.shift_factor == pytest.approx(values.mean(), rel=1e-13)
    assert found.scaling_factor == pytest.approx(1 / values.std(), rel=1e-13)
    assert found.num_values == values.shape[1]


def test_grouping_does_not_change_a_bit() -> None:
    parts = images()
    whole = total(parts)
    rng = random.Random(0)
    for _ in range(5):
        rng.shuffle(parts)
        cut = rng.randrange(len(parts))
        assert total(parts[:cut]) + total(parts[cut:]) == whole


def test_json_keeps_every_bit() -> None:
    found = total(images())
    assert LatentStatistics.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_errors_of_equal_images_are_those_of_their_means() -> None:
    rng = np.random.default_rng(1)
    parts = [(rng.normal(rng.normal(), 1, (2, 4, 4))).astype(np.float32) for _ in range(50)]
    means = np.array([part.astype(np.float64).mean(axis=(1, 2)) for part in parts])
    expected = means.std(axis=0, ddof=1) / np.sqrt(len(parts))
    np.testing.assert_allclose(total(parts).mean_standard_error, expected, rtol=1e-12)


def test_the_errors_tell_how_far_another_sample_lies() -> None:
    """Over many samples of images, the spread of mean and std is what a sample says of itself."""
    found = [total(images(60, seed)) for seed in range(60)]
    for name in ("mean", "std"):
        spread = np.std([getattr(one, name) for one in found], axis=0, ddof=1)
        stated = np.median([getattr(one, f"{name}_standard_error") for one in found], axis=0)
        np.testing.assert_allclose(stated, spread, rtol=0.35)


def test_large_and_small_values_are_exact_too() -> None:
    parts = [np.full((1, 2, 2), value, np.float32) for value in (1e30, -1e30, 1.0, 1e-3)]
    assert total(parts).mean[0] == pytest.approx((1 + float(np.float32(1e-3))) / 4, rel=1e-12)


def test_constant_channels_have_no_deviation() -> None:
    found = total([np.full((2, 3, 3), 0.1, np.float32)] * 3)
    assert (found.std < 1e-8).all()
    assert (found.std_standard_error < 1e-6).all()


def test_one_image_has_no_standard_error() -> None:
    found = total(images(1))
    assert np.isnan(found.mean_standard_error).all()
    assert found.summary()["std_standard_error"] == [None] * 3


def test_nothing_is_added_to_nothing() -> None:
    empty = LatentStatistics()
    assert empty + empty == empty
    assert (empty.shift_factor, empty.scaling_factor) == (0.0, 1.0)


def test_other_channels_and_broken_json_are_refused() -> None:
    found = total(images(2))
    with pytest.raises(ShardError, match="channels"):
        _ = found + LatentStatistics.of(np.ones((2, 2, 2), np.float32))
    good = found.to_json()
    for change in (
        {"unit": "2**-1"},
        {"s": ["1", "2"]},
        {"q": ["x"] * 3},
        {"q": ["9" * 5000] * 3},
        {"images": -1},
        {"nn": None},
    ):
        with pytest.raises(ShardError):
            LatentStatistics.from_json({**good, **change})
