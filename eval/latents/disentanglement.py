"""How far single latents stand for single factors of variation.

The mutual information gap (Chen et al., arXiv:1802.04942, section 4): for each known factor, the
mutual information with the latent that knows most of it, less that with the runner-up, over the
factor's entropy; the mean over factors. 1: each factor has a latent of its own; 0: each is shared.

Shapes: N images, D latents, K factors.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 20
"""Equally filled bins of a latent, as in the published implementations."""


@dataclass(frozen=True, slots=True)
class Disentanglement:
    """What latents know of factors.

    Attributes:
        gap: mutual information gap, 0 to 1.
        information: (D, K) mutual information of each latent and factor, in shares of the factor's
            entropy.
    """

    gap: float
    information: npt.NDArray[np.float64]


def mutual_information_gap(
    latents: npt.ArrayLike, factors: npt.ArrayLike, bins: int = BINS
) -> Disentanglement:
    """Measure the gap from pairs of latents and factor values.

    The plug-in estimate of mutual information is biased upwards by about (bins - 1) * (values - 1)
    / 2N nats; the gap, a difference, is less so. A few thousand images are enough.

    Args:
        latents: float (N, D), posterior means.
        factors: int (N, K), the index of each factor's value, from 0.
        bins: of each latent.
    """
    latents, factors = np.asarray(latents, dtype=np.float64), np.asarray(factors)
    assert len(latents) == len(factors)
    binned = [_bins(column, bins) for column in latents.T]
    information = np.array(
        [[_information(column, factor) for factor in factors.T] for column in binned]
    )
    first, second = np.sort(information, axis=0)[[-1, -2]]
    return Disentanglement(float(np.mean(first - second)), information)


def _bins(values: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.int64]:
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values).astype(np.int64)


def _information(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Mutual information of two sequences over the entropy of the second."""
    counts = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(counts, (first, second), 1)
    joint = counts / counts.sum()
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    information = np.sum(joint[seen] * np.log(joint[seen] / apart[seen]))
    share = joint.sum(axis=0)
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return float(information / entropy) if entropy > 0 else 0.0
