"""The Frechet distance between two sets of feature vectors, taken as Gaussians.

|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; Heusel et al.,
arXiv:1706.08500, equation 6). The estimate grows as images get fewer (arXiv:1911.07023), so only
figures of the same number of images compare, and with fewer images than features the covariances
are singular: a result says so.

Legend: N images, D features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.distribution.features import Features

Matrix = NDArray[np.float64]  # (D, D)


@dataclass(frozen=True, slots=True)
class FrechetDistance:
    """A distance, and whether it had images enough.

    Attributes:
        value: squared units of the features.
        num_images: of the smaller set.
        num_features: D.
    """

    value: float
    num_images: int
    num_features: int

    @property
    def note(self) -> str | None:
        """What a reader must know where there were too few images, in a sentence."""
        if self.num_images > self.num_features:
            return None
        return (
            f"{self.num_images} images for {self.num_features} features: the covariances are "
            "singular and the Frechet distance too large, to be compared only at this number"
        )


def frechet_distance(first: Features, second: Features) -> FrechetDistance:
    """Measure how far two sets are apart.

    Args:
        first: (N, D), N at least 2.
        second: (M, D), likewise.

    Raises:
        ValueError: a set has fewer than two images, or the sets other features.
    """
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"found features of shape {first.shape} and {second.shape}, expected the same number "
            "of features and at least 2 images of each set"
        )
    covariances = [np.atleast_2d(np.cov(part, rowvar=False)) for part in (first, second)]
    apart = first.mean(axis=0) - second.mean(axis=0)
    value = float(apart @ apart) + sum(float(np.trace(part)) for part in covariances)
    value -= 2 * root_trace(*covariances)
    return FrechetDistance(max(value, 0.0), min(len(first), len(second)), first.shape[1])


def root_trace(first: Matrix, second: Matrix) -> float:
    """Return tr((C1 C2)^(1/2)) of two covariances.

    C1 C2 has the eigenvalues of S1 C2 S1 = (S2 S1)' (S2 S1) with the symmetric roots S1 and S2, so
    the trace is the sum of the singular values of S2 S1. Unlike the root of C1 C2 itself, which has
    no symmetry and may not exist for singular ones, this is real and exact to rounding.
    """
    return float(np.linalg.svd(_root(second) @ _root(first), compute_uv=False).sum())


def _root(covariance: Matrix) -> Matrix:
    """Return the symmetric root of a covariance; what rounding took below 0 counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: Matrix = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root
