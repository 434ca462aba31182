"""Probabilities of 8-bit pixel values under a decoder's output.

A continuous density of a location (the reconstruction) and one scale is integrated over each of
the 256 levels, with open tails at 0 and 255, so that the probabilities add up to 1 (PixelCNN++,
arXiv:1701.05517, equation 2). Computed in float64 as differences of log-cdfs.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Likelihood: TypeAlias = Literal["laplace", "logistic", "gaussian"]

SCALE_RANGE = (1e-2, 1e3)
"""Searched by `fit_scale`, in 8-bit levels: certainty of a level, and wider than all of them."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_SEARCH_STEPS = 40  # narrow the range, 11.5 in natural logarithms, by 0.618 each: to 5e-8


def log_probability(x: Tensor, y: Tensor, scale: float, likelihood: Likelihood) -> Tensor:
    """Log-probability of each pixel value in nats, float64, of x's shape.

    Args:
        x: the levels, 0 to 255, of any dtype.
        y: the reconstruction of the same shape, about [-1, 1]; level k is at k / 127.5 - 1.
        scale: of the density, in 8-bit levels: Laplace's mean absolute deviation, the logistic's
            s, the Gaussian's standard deviation.
        likelihood: the density.
    """
    log_cdf = _LOG_CDFS[likelihood]
    x = x.double()
    centre = x - (y.double() + 1) * 127.5
    low = torch.where(x <= 0, -math.inf, centre - 0.5) / scale
    high = torch.where(x >= 255, math.inf, centre + 0.5) / scale
    # The densities are even: intervals above their middle are mirrored, where log-cdfs are exact.
    is_above = centre > 0
    low, high = torch.where(is_above, -high, low), torch.where(is_above, -low, high)
    log_high = log_cdf(high)
    return log_high + torch.log(-torch.expm1(log_cdf(low) - log_high))


def fit_scale(x: Tensor, y: Tensor, likelihood: Likelihood = "laplace") -> float:
    """The scale under which the levels x are likeliest, in 8-bit levels (golden-section search).

    Args:
        x: levels 0 to 255, of any shape.
        y: the reconstruction, about [-1, 1], of the same shape.
        likelihood: the density.

    Returns:
        A scale within `SCALE_RANGE`; its lower end if every level is hit to less than half.
    """

    def cost(log_scale: float) -> float:
        return -float(log_probability(x, y, math.exp(log_scale), likelihood).mean())

    low, high = (math.log(end) for end in SCALE_RANGE)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_SEARCH_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = cost(right)
    return math.exp((low + high) / 2)


def _laplace_log_cdf(z: Tensor) -> Tensor:
    return torch.where(z < 0, z - math.log(2), torch.log1p(-0.5 * torch.exp(-z.clamp(min=0))))


_LOG_CDFS: dict[Likelihood, Callable[[Tensor], Tensor]] = {
    "laplace": _laplace_log_cdf,
    "logistic": F.logsigmoid,
    "gaussian": torch.special.log_ndtr,
}
