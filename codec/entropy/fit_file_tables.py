"""Fit the tables that travel in a file to the symbols of that file.

Least squares on a sample of positions; floats appear here only, the result is small integers.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from codec.entropy.file_tables import SCALE_BITS, ClassWeights, FileTables
from codec.entropy.lattice import PASSES
from codec.entropy.ring_features import (
    CLASSES,
    MAX_SCALE,
    MEAN_BITS,
    RINGS,
    Features,
    features_of,
    liveliness,
    rim_distances,
)
from codec.entropy.tables import FRACTION_BITS

Floats = NDArray[np.float64]

_MAX_SAMPLES = 100_000  # positions that the weights are fitted on
_SCALE_ROUNDS = 5
_MIN_SCALE = 0.1  # symbols; what is nearly constant must not outweigh the rest
_SET_BYTES = 17  # that a further set of weights costs, about


def fit_file_tables(symbols: NDArray[np.int32]) -> FileTables:
    """Fits tables to the symbols of one image; the same symbols give the same tables.

    Channels share their weights unless sets of their own save more than they take.

    Args:
        symbols: int32 (C, h, w), strictly between -2**20 and 2**20.
    """
    means = [round(float(plane.mean())) for plane in symbols]
    deviations = np.abs(symbols - np.array(means)[:, None, None])
    root_scale = min(round(float(deviations.mean()) * (1 << FRACTION_BITS)), MAX_SCALE)
    samples = _gather(symbols, means)  # by channel, then by class
    shared = _fit_classes([list(chain(*parts)) for parts in zip(*samples, strict=True)])
    own = [_fit_classes(one) for one in samples]
    saved = sum(cost for _, cost in shared) - sum(cost for one in own for _, cost in one)
    num_samples = sum(len(part.targets) for one in samples for parts in one for part in parts)
    saved *= symbols.size / max(1, num_samples)
    chosen = own if saved > 8 * _SET_BYTES * (len(symbols) - 1) else [shared]
    return FileTables(
        tuple(means), root_scale, tuple(tuple(weights for weights, _ in one) for one in chosen)
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some positions of one pass: features, and (n,) symbols less the channel's mean."""

    features: Features
    targets: NDArray[np.int64]


def _gather(symbols: NDArray[np.int32], means: list[int]) -> list[list[list[_Sample]]]:
    """Returns evenly spread positions of each channel and class."""
    stride = -(-symbols.size // _MAX_SAMPLES) | 1  # odd: no power of two, so all columns take part
    activity = np.zeros(symbols.shape[1:], np.int64)
    gathered = []
    for channel, mean in enumerate(means):
        plane = symbols[channel].astype(np.int64)
        live = liveliness(activity, channel)
        parts: list[list[_Sample]] = [[] for _ in CLASSES]
        for order in PASSES[1:]:
            for rows, features in features_of(plane, live, order, mean):
                targets = order.view(plane)[rows.start : rows.stop].ravel()[::stride] - mean
                own, lively = features.own[:, ::stride], features.live[::stride]
                kept = Features(own, lively, order, mean)
                parts[CLASSES.index((order.row, order.column))].append(_Sample(kept, targets))
        activity += rim_distances(plane)
        gathered.append(parts)
    return gathered


def _fit_classes(samples: list[list[_Sample]]) -> list[tuple[ClassWeights, float]]:
    """Returns the weights of each class, and the bits that its sampled symbols take with them."""
    return [
        _fit_class(parts, len(RINGS[place])) for parts, place in zip(samples, CLASSES, strict=True)
    ]


def _fit_class(samples: list[_Sample], num_rings: int) -> tuple[ClassWeights, float]:
    if not samples:
        return ClassWeights((0,) * num_rings, 0, 0, 0), 0.0
    sums = np.concatenate([part.features.ring_sums() for part in samples], axis=1)
    targets = np.concatenate([part.targets for part in samples])
    solved = _least_squares(sums.astype(float), targets.astype(float))
    rings = tuple(np.rint(solved * (1 << MEAN_BITS)).clip(-128, 127).astype(int).tolist())
    features, errors = [], []
    for part in samples:
        means = part.features.means(rings)
        near = part.features.near(means)
        features.append(
            np.stack([near, part.features.live, np.full_like(near, 1 << FRACTION_BITS)])
        )
        errors.append(np.abs((part.targets + part.features.mean << FRACTION_BITS) - means))
    weights, bits = _fit_scale(
        np.concatenate(features, axis=1) / (1 << FRACTION_BITS),
        np.concatenate(errors) / (1 << FRACTION_BITS),
    )
    near, live = np.rint(weights[:2] * (1 << SCALE_BITS)).clip(0, 255).astype(int).tolist()
    constant = min(round(weights[2] * (1 << FRACTION_BITS)), MAX_SCALE)
    return ClassWeights(rings, near, live, constant), bits


def _fit_scale(features: Floats, errors: Floats) -> tuple[Floats, float]:
    """Returns weights (3,) of the scale, none negative, and the code length of the errors in bits.

    The length is that of a Laplacian, sum(log 2 s + |r| / s), which reweighted least squares make
    small.
    """
    scales = np.full_like(errors, max(float(errors.mean()), _MIN_SCALE))
    for _ in range(_SCALE_ROUNDS):
        weights = np.maximum(_least_squares(features / scales, errors / scales), 0)
        scales = np.maximum(weights @ features, _MIN_SCALE)
    weights *= np.mean(errors / scales)  # what clipping at 0 changed, evened out
    scales = np.maximum(weights @ features, _MIN_SCALE)
    return weights, float(np.sum(np.log2(2 * scales) + errors / scales / np.log(2)))


def _least_squares(inputs: Floats, targets: Floats) -> Floats:
    """Returns the w that minimises sum((w @ inputs - targets)**2) plus a small ridge."""
    gram = inputs @ inputs.T
    ridge = 1e-5 * np.trace(gram) / len(gram) + 1e-9
    solution: Floats = np.linalg.solve(gram + ridge * np.eye(len(gram)), inputs @ targets)
    return solution
