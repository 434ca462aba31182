"""The Frechet distance against scipy's matrix root, closed forms, and too few images."""

import numpy as np
import pytest
import scipy.linalg

from eval.distribution.frechet import frechet_distance, root_trace


def features(number: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(number, width)) @ rng.normal(size=(width, width)) + rng.normal(
        size=width
    )


def test_value_is_that_of_the_matrix_root() -> None:
    first, second = features(200, 12, 0), features(300, 12, 1)
    covariances = [np.cov(part, rowvar=False) for part in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = first.mean(0) - second.mean(0)
    expected = apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * root)
    found = frechet_distance(first, second)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert (found.num_images, found.num_features, found.note) == (200, 12, None)


def test_fewer_images_than_features_agree_with_singular_values_of_the_data() -> None:
    first, second = features(10, 40, 2), features(15, 40, 3)
    covariances = [np.cov(part, rowvar=False) for part in (first, second)]
    centred = [(part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (first, second)]
    expected = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    assert root_trace(*covariances) == pytest.approx(expected, rel=1e-7)
    note = frechet_distance(first, second).note
    assert note is not None
    assert note.startswith("10 images for 40 features")


def test_gaussians_along_one_axis_have_a_closed_form() -> None:
    x = np.random.default_rng(0).normal(size=(500, 1))
    scaled = 3 * (x - x.mean()) + 2
    expected = (2 - x.mean()) ** 2 + (2 * x.std(ddof=1)) ** 2
    assert frechet_distance(x, scaled).value == pytest.approx(expected)


def test_a_set_is_at_no_distance_from_itself_and_rotation_changes_nothing() -> None:
    first, second = features(80, 6, 4), features(80, 6, 5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert frechet_distance(first, first).value == pytest.approx(0, abs=1e-9)
    expected = frechet_distance(first, second).value
    assert frechet_distance(first @ turn, second @ turn).value == pytest.approx(expected)
    assert frechet_distance(second, first).value == pytest.approx(expected)


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 images of each set"):
        frechet_distance(np.zeros((1, 3)), np.zeros((2, 3)))
