"""The metrics against formulas written out here and against another implementation's values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from eval import metrics

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """A photograph, 512x512, that scikit-image carries in its package."""
    return np.asarray(data.astronaut())


def darker(photo: Pixels) -> Pixels:
    return photo // 2 + 60


def posterised(photo: Pixels) -> Pixels:
    return (photo // 64) * 64 + 32


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((4, 6, 3), dtype=np.uint8)
    off_by_five = np.full_like(black, 5)
    assert metrics.psnr(black, off_by_five) == pytest.approx(20 * math.log10(255 / 5))


def test_psnr_does_not_wrap_around_at_eight_bits() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert metrics.psnr(black, white) == 0.0


def test_identical_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 256, (170, 161, 3), dtype=np.uint8)
    assert metrics.psnr(image, image) == math.inf
    assert metrics.ssim(image, image) == pytest.approx(1.0)
    assert metrics.ms_ssim(image, image) == pytest.approx(1.0)


def test_psnr_from_mse_knows_the_span() -> None:
    assert metrics.psnr_from_mse(0.04, peak=2.0) == pytest.approx(20.0)


def test_ssim_of_a_single_window_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 256, (2, 11, 11), dtype=np.uint8)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    variance_a = (window * (a - mean_a) ** 2).sum()
    variance_b = (window * (b - mean_b) ** 2).sum()
    covariance = (window * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    found = metrics.ssim(np.stack([first] * 3, -1), np.stack([second] * 3, -1))
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("damage", "ssim", "ms_ssim"),
    [(darker, 0.7029780, 0.8406558), (posterised, 0.6199191, 0.8832333)],
)
def test_values_of_pytorch_msssim(
    photo: Pixels, damage: Callable[[Pixels], Pixels], ssim: float, ms_ssim: float
) -> None:
    # pytorch-msssim 1.0.0 in float64; its window is rounded to float32, hence the tolerance.
    damaged = damage(photo)
    assert metrics.ssim(photo, damaged) == pytest.approx(ssim, abs=5e-6)
    assert metrics.ms_ssim(photo, damaged) == pytest.approx(ms_ssim, abs=5e-6)


def test_flat_bright_areas_keep_their_precision() -> None:
    # Single precision gives 0.9877 here: E[x^2] - E[x]^2 cancels.
    flat = np.full((96, 128, 3), 250, dtype=np.uint8)
    noisy = (flat - np.random.default_rng(0).integers(0, 3, flat.shape)).astype(np.uint8)
    assert metrics.ssim(flat, noisy) == pytest.approx(0.9892, abs=2e-4)


def test_ms_ssim_counts_opposite_structure_as_nothing() -> None:
    image = np.random.default_rng(2).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    assert metrics.ms_ssim(image, 255 - image) == 0.0


@pytest.mark.parametrize("shape", [(160, 400, 3), (400, 160, 3), (1, 1, 3)])
def test_ms_ssim_is_none_without_a_fifth_scale(shape: tuple[int, int, int]) -> None:
    image = np.zeros(shape, dtype=np.uint8)
    assert metrics.ms_ssim(image, image) is None


def test_ssim_is_none_where_the_window_does_not_fit() -> None:
    image = np.zeros((10, 50, 3), dtype=np.uint8)
    assert metrics.ssim(image, image) is None


def test_tensors_count_like_arrays(photo: Pixels) -> None:
    other = darker(photo)
    tensors = torch.from_numpy(photo.copy()), torch.from_numpy(other)
    assert metrics.psnr(*tensors) == metrics.psnr(photo, other)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8)],
)
def test_other_layouts_are_refused(wrong: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        metrics.psnr(wrong, wrong)


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="8x4 and 4x8 pixels"):
        metrics.psnr(np.zeros((4, 8, 3), np.uint8), np.zeros((8, 4, 3), np.uint8))


def test_bpp_counts_bits_of_the_whole_file() -> None:
    assert metrics.bpp(1536, 128, 96) == 1.0
