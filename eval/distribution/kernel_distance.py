"""The unbiased kernel distance between two sets of feature vectors, with an interval.

The squared maximum mean discrepancy with the cubic kernel of Binkowski et al., "Demystifying MMD
GANs", arXiv:1801.01401, section 4: k(x, y) = (x.y / D + 1)^3, estimated as in Gretton et al. 2012,
equation 3. It is unbiased at any number of images, so it is about 0 for two sets of one kind and
can fall below. It has no unit but the kernel's: figures over other features cannot be compared.

Legend: N images of each set, D features, R draws of the bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.distribution.features import Features

CONFIDENCE = 0.95
DRAWS = 1000

Kernel = NDArray[np.float64]  # (N, N)
Weights = NDArray[np.float64]  # (R, N): how often each image was drawn


@dataclass(frozen=True, slots=True)
class KernelDistance:
    """A distance and its interval.

    Attributes:
        value: the unbiased squared discrepancy, in units of the kernel.
        low: end of the interval: percentile of the bootstrap over images of both sets.
        high: likewise.
        num_images: N, of each set.
    """

    value: float
    low: float
    high: float
    num_images: int


def cubic_kernel(first: Features, second: Features) -> Kernel:
    """Return k(x, y) for each pair of rows of (N, D) and (M, D), float64 (N, M)."""
    kernel: Kernel = (first @ second.T / first.shape[1] + 1) ** 3
    return kernel


def equal_numbers(
    first: Features, second: Features, *, most: int | None = None, seed: int = 0
) -> tuple[Features, Features]:
    """Return as many vectors of each set, drawn without replacement by the seed.

    Args:
        first: (N, D).
        second: (M, D).
        most: how many at most; else as many as the smaller set has.
        seed: of the draw; a set that is taken whole keeps its order.
    """
    number = min(len(first), len(second), most or len(first))
    rng = np.random.default_rng(seed)
    parts = [
        part if len(part) == number else part[np.sort(rng.choice(len(part), number, False))]
        for part in (first, second)
    ]
    return parts[0], parts[1]


def kernel_distance(
    first: Features,
    second: Features,
    *,
    paired: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> KernelDistance:
    """Measure how far two sets of the same number of images are apart.

    The bootstrap draws images with replacement and, as the distance itself, leaves out what an
    image has with itself; else copies within a draw would make all distances larger.

    Args:
        first: (N, D), N at least 2.
        second: (N, D).
        paired: whether image i of the second set was made from image i of the first, as
            reconstructions are. Such pairs are left out, as they would make the distance too small,
            and are drawn together.
        draws: R.
        seed: of the bootstrap.

    Raises:
        ValueError: the sets do not have as many images, or fewer than two.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"found features of shape {first.shape} and {second.shape}, expected as many images of "
            "each set, at least 2: use equal_numbers"
        )
    kernels = (
        cubic_kernel(first, first),
        cubic_kernel(second, second),
        cubic_kernel(first, second),
    )
    number = len(first)
    once = np.ones((1, number))
    rng = np.random.default_rng(seed)
    of_first = _drawn(number, draws, rng)
    of_second = of_first if paired else _drawn(number, draws, rng)
    found = _discrepancies(kernels, of_first, of_second, paired)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, (tail, 1 - tail))
    value = _discrepancies(kernels, once, once, paired)[0]
    return KernelDistance(float(value), float(low), float(high), number)


def _drawn(number: int, draws: int, rng: np.random.Generator) -> Weights:
    """Draw images with replacement, at least two different ones each time."""
    weights = rng.multinomial(number, np.full(number, 1 / number), draws)
    while (alone := weights.max(axis=1) == number).any():
        again = rng.multinomial(number, np.full(number, 1 / number), int(alone.sum()))
        weights[alone] = again
    return weights.astype(np.float64)


def _discrepancies(
    kernels: tuple[Kernel, Kernel, Kernel], first: Weights, second: Weights, paired: bool
) -> NDArray[np.float64]:
    """Return the squared discrepancy (R,) of each draw."""
    within_first, within_second, between = kernels
    across = (
        _mean_of_pairs(between, first, second)
        if paired
        else np.einsum("ri,ri->r", first @ between, second) / first.shape[1] ** 2
    )
    return (
        _mean_of_pairs(within_first, first, first)
        + _mean_of_pairs(within_second, second, second)
        - 2 * across
    )


def _mean_of_pairs(kernel: Kernel, left: Weights, right: Weights) -> NDArray[np.float64]:
    """Return the mean of k over pairs of different images, by weight, (R,)."""
    same = left * right
    total = np.einsum("ri,ri->r", left @ kernel, right) - same @ np.diag(kernel)
    count = left.sum(axis=1) * right.sum(axis=1) - same.sum(axis=1)
    mean: NDArray[np.float64] = total / count
    return mean
