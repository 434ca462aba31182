"""Aspect-ratio buckets: few shapes of nearly one area, so that batches need no padding.

The rule gives SDXL's list for 1024 (Podell et al., "SDXL: Improving Latent Diffusion Models for
High-Resolution Image Synthesis", arXiv 2307.01952, appendix I) and its like for other sizes: sides
that are multiples of 64, an area between 0.9 and 1 times the square's, and no side more than four
times the other.
"""

import math
from functools import lru_cache

from codec.errors import LatentCodecError

Size = tuple[int, int]  # width, height in pixels

_LEAST_AREA = 0.9
_LARGEST_ASPECT = 4


class PreprocessingError(LatentCodecError):
    """The wishes for preprocessing contradict each other or are out of range."""


@lru_cache(maxsize=32)
def bucket_sizes(size: int, multiple: int = 64) -> tuple[Size, ...]:
    """Returns the (width, height) of all buckets, narrow to wide.

    Args:
        size: The side of the square whose area they have.
        multiple: What all sides are multiples of.

    Raises:
        PreprocessingError: There is none.
    """
    area = size * size
    sides = range(multiple, _LARGEST_ASPECT * size + 1, multiple)
    sizes = [
        (width, height)
        for width in sides
        for height in sides
        if _LEAST_AREA * area <= width * height <= area
        and max(width, height) <= _LARGEST_ASPECT * min(width, height)
    ]
    if not sizes:
        raise PreprocessingError(
            f"found no bucket for the size {size} with sides that are multiples of {multiple}: "
            f"expected a size of {multiple} or more, best a multiple of it"
        )
    return tuple(sorted(sizes, key=lambda one: (one[0] / one[1], one)))


def nearest_bucket(width: int, height: int, sizes: tuple[Size, ...]) -> Size:
    """Returns the bucket whose aspect ratio is nearest, of equal ones the largest."""

    def distance(one: Size) -> tuple[float, int]:
        # As a quotient, so that equal ratios are equal whatever sides they are made of.
        apart = abs(math.log((width * one[1]) / (height * one[0])))
        return (apart, -one[0] * one[1])

    return min(sizes, key=distance)
