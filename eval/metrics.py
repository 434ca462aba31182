"""The image metrics, each defined once: PSNR, SSIM, MS-SSIM and bits per pixel.

Shapes: H W pixels. Every metric takes two pictures of the same size as 8-bit RGB, `(H, W, 3)`
uint8, so that what is measured is what a viewer would see: rounded, clamped pixels, never the float
output of a network. A gray picture is measured as RGB.

SSIM comes from scikit-image rather than torchmetrics: in double precision (single precision loses
the third digit in flat, bright areas), without the mirrored border that torchmetrics averages in,
and several times faster on a processor. Its values agree with the original and with what the
compression literature reports.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.metrics import structural_similarity

PEAK = 255.0
SSIM_MIN_SIDE = 11  # the Gaussian window must fit inside the picture once
MS_SSIM_MIN_SIDE = 161  # ... and still once after four halvings: (11 - 1) * 2**4 + 1
# Wang, Simoncelli and Bovik, "Multiscale structural similarity", 2003, section 3.2.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr_from_mse(mse: float, peak: float = PEAK) -> float:
    """Turn a mean squared error into a peak signal-to-noise ratio.

    Args:
        mse: mean squared error, in squared units of `peak`.
        peak: the span of the values: 255 for 8-bit pixels, 2 for floats in [-1, 1].

    Returns:
        Decibels; `inf` for an error of zero.
    """
    return 10.0 * math.log10(peak * peak / mse) if mse > 0 else math.inf


def psnr(reference: ArrayLike, reconstruction: ArrayLike) -> float:
    """Return the peak signal-to-noise ratio of 8-bit RGB pixels in dB, `inf` if identical.

    Args:
        reference: `(H, W, 3)` uint8, an array or a tensor on the CPU.
        reconstruction: like `reference`.

    Raises:
        ValueError: the pictures differ in size, or are not 8-bit RGB.
    """
    first, second = _pair(reference, reconstruction)
    difference = np.subtract(first, second, dtype=np.int32)
    # Summed as integers: exact, whatever the size of the picture.
    return psnr_from_mse(int(np.square(difference).sum(dtype=np.int64)) / first.size)


def ssim(reference: ArrayLike, reconstruction: ArrayLike) -> float | None:
    """Return the structural similarity (Wang et al. 2004), at most 1, mean over R, G and B.

    Args:
        reference: `(H, W, 3)` uint8, an array or a tensor on the CPU.
        reconstruction: like `reference`.

    Returns:
        The index, or None where a side is under 11 pixels and the window does not fit.

    Raises:
        ValueError: the pictures differ in size, or are not 8-bit RGB.
    """
    first, second = _pair(reference, reconstruction)
    if min(first.shape[:2]) < SSIM_MIN_SIDE:
        return None
    return float(np.mean([_similarity(*planes) for planes in _planes(first, second)]))


def ms_ssim(reference: ArrayLike, reconstruction: ArrayLike) -> float | None:
    """Return the multi-scale structural similarity (Wang et al. 2003), 0 to 1.

    Computed for R, G and B apart and averaged, as compression papers do.

    Args:
        reference: `(H, W, 3)` uint8, an array or a tensor on the CPU.
        reconstruction: like `reference`.

    Returns:
        The index, or None where a side is under 161 pixels and the fifth scale does not exist.

    Raises:
        ValueError: the pictures differ in size, or are not 8-bit RGB.
    """
    first, second = _pair(reference, reconstruction)
    if min(first.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    return float(np.mean([_plane_ms_ssim(*planes) for planes in _planes(first, second)]))


def bpp(size_bytes: int, width: int, height: int) -> float:
    """Return the rate in bits per pixel: the whole file, header included, over the original size.

    Args:
        size_bytes: length of the file.
        width: original width in pixels.
        height: original height in pixels.
    """
    return 8.0 * size_bytes / (width * height)


def _plane_ms_ssim(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """MS-SSIM of one colour plane (H, W): equation 7, luminance at the coarsest scale only."""
    value = 1.0
    for weight in MS_SSIM_WEIGHTS[:-1]:
        # A negative term has no real power; it counts as no similarity at all, as is usual.
        value *= max(_similarity(first, second, with_luminance=False), 0.0) ** weight
        first, second = _halve(first), _halve(second)
    return float(value * max(_similarity(first, second), 0.0) ** MS_SSIM_WEIGHTS[-1])


def _similarity(
    first: NDArray[np.float64], second: NDArray[np.float64], with_luminance: bool = True
) -> float:
    """Return the mean SSIM of a plane, or of its contrast-structure part alone."""
    value: float = structural_similarity(
        first,
        second,
        data_range=PEAK,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        # The luminance term (2ab + C1) / (a^2 + b^2 + C1) is 1 for a C1 that dwarfs the pixels.
        K1=0.01 if with_luminance else 1e6,
    )
    return value


def _halve(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average each 2x2 block of a plane, an odd last row or column repeated as in TensorFlow's."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _pair(
    reference: ArrayLike, reconstruction: ArrayLike
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return both pictures as `(H, W, 3)` uint8 arrays of one size."""
    first, second = np.asarray(reference), np.asarray(reconstruction)
    for pixels in (first, second):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"found pixels of shape {pixels.shape} and type {pixels.dtype}, expected "
                "(H, W, 3) uint8: convert with codec.images first"
            )
    if first.shape != second.shape:
        raise ValueError(
            f"found pictures of {first.shape[1]}x{first.shape[0]} and "
            f"{second.shape[1]}x{second.shape[0]} pixels, expected one size: compare a picture "
            "with its own reconstruction"
        )
    return first, second


def _planes(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the R, G and B planes of both pictures, `(H, W)` float64 in 0..255."""
    return [
        (first[..., channel].astype(np.float64), second[..., channel].astype(np.float64))
        for channel in range(3)
    ]
