"""One-pass figures against the whole data at once, and their error bars against repetition."""

import math

import numpy as np
import pytest

from eval.latents.statistics import StreamingStatistics


def batches(seed: int, count: int = 20, offset: float = 0.0) -> list[np.ndarray]:
    """Images of different sizes whose three channels are related: (3, h, w)."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        first, noise = rng.normal(rng.normal(), 1, (2, 4, 3 + number % 3))
        images.append(np.stack([first, 0.6 * first + 0.8 * noise, -2 * first]) + offset)
    return images


def measured(images: list[np.ndarray]) -> StreamingStatistics:
    streaming = StreamingStatistics(3)
    for image in images:
        streaming.update(image)
    return streaming


def test_they_are_those_of_all_values_together() -> None:
    images = batches(0, offset=3.0)
    found = measured(images).finish()
    values = np.concatenate([image.reshape(3, -1) for image in images], axis=1)
    assert found.mean == pytest.approx(values.mean(axis=1))
    assert found.std == pytest.approx(values.std(axis=1))
    assert np.asarray(found.correlation) == pytest.approx(np.corrcoef(values))
    assert found.scaling_factor == pytest.approx(1 / values.std())
    assert found.shift_factor == pytest.approx(values.mean())
    assert (found.count, found.num_images) == (values.shape[1], len(images))
    assert found.largest_correlation == pytest.approx(1.0)  # the third channel is -2 the first


def test_parts_merge_to_the_whole() -> None:
    images = batches(1)
    merged = measured(images[:3])
    merged.merge(StreamingStatistics(3))
    merged.merge(measured(images[3:]))
    found, expected = merged.finish(), measured(images).finish()
    for name in ("mean", "std", "mean_error", "std_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-10)
    assert np.asarray(found.correlation) == pytest.approx(np.asarray(expected.correlation))


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_standard_errors_are_the_spread_of_repetitions(offset: float) -> None:
    """Positions of an image are alike here, so errors that took them as draws would be too low."""
    runs = [measured(batches(seed, 40, offset)).finish() for seed in range(200)]
    for name in ("mean", "std"):
        spread = np.std([getattr(run, name) for run in runs], axis=0)
        stated = np.mean([getattr(run, f"{name}_error") for run in runs], axis=0)
        assert stated == pytest.approx(spread, rel=0.2)


def test_one_image_has_no_error_bars_and_constants_no_correlation() -> None:
    streaming = StreamingStatistics(2)
    streaming.update(np.stack([np.full((2, 2), 3.0), np.arange(4.0).reshape(2, 2)]))
    found = streaming.finish()
    assert found.mean_error is None
    assert found.std_error is None
    assert found.largest_correlation == 0.0
    dead = StreamingStatistics(1)
    dead.update(np.ones((1, 2, 2)))
    dead.update(np.ones((1, 2, 2)))
    assert dead.finish().scaling_factor == math.inf
    assert dead.finish().std_error == (0.0,)
