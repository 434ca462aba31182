"""Fit a SymbolCoder to raw latents: least squares for the predictors, counts for the tables.

The images are quantised with several steps and walked through pass by pass, all at once: for each
pass the weights are fitted on a sample of positions, rounded to integers, and then the integer
code itself predicts every position, so that the tables are counted on exactly what the coder will
see. Floats appear here only; the result is integers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.entropy.coder import SymbolCoder
from codec.entropy.context import (
    CONSTANT_LIMIT,
    MEAN_WEIGHT_BITS,
    SCALE_CONSTANT_BITS,
    SCALE_WEIGHT_BITS,
    STEP_BITS,
    WEIGHT_LIMIT,
    Predictor,
    scale_features,
)
from codec.entropy.fit_tables import ResidualCounts
from codec.entropy.lattice import PASSES, Neighbourhood, Pass, mirror
from codec.entropy.residuals import SYMBOL_LIMIT
from codec.entropy.symbols import MAX_STEP
from codec.errors import LatentCodecError

Floats = NDArray[np.float64]

_MAX_SYMBOLS = 12_000_000  # walked through; half a minute's work
_MAX_SAMPLES = 40_000  # positions that the weights of one pass are fitted on
_SCALE_ROUNDS = 5
_RIDGE = (
    1e-5  # of the mean diagonal: settles constant and collinear neighbours; with few samples more
)


class FitError(LatentCodecError):
    """Latents or steps that no coder can be fitted to."""


@dataclass(slots=True)
class _Item:
    """One image at one step while its channels are walked through.

    Attributes:
        symbols: int32 (C, h, w).
        step: In units of 2**-16.
        plane: The current channel, as far as it is known.
        earlier: The channels before it, with their margins.
    """

    symbols: NDArray[np.int32]
    step: int
    plane: NDArray[np.int64]
    earlier: tuple[NDArray[np.int64], ...] = ()


@dataclass(frozen=True, slots=True)
class _Samples:
    """Positions of one pass from many images, in integers as the coder sees them.

    Attributes:
        gathered: (K, n) neighbours.
        symbols: (n,) symbols.
        steps: (n,) quantiser steps, units of 2**-16.
    """

    gathered: NDArray[np.int64]
    symbols: NDArray[np.int64]
    steps: NDArray[np.int64]


def fit(latents: Sequence[NDArray[np.float32]], steps: Sequence[int]) -> SymbolCoder:
    """Fit a coder to raw latents; the same input gives the same coder.

    Args:
        latents: Raw latents (C, h, w) of at least one image, finite, all with the same C.
        steps: Quantiser steps in units of 2**-16 that the coder shall serve, best log-spaced over
            the range in use; others work too, a little less well.

    Raises:
        FitError: No latents or steps, different channel counts, or values that are not finite.
    """
    _check(latents, steps)
    items = _quantise(latents, steps)
    counts = ResidualCounts()
    predictors = []
    for channel in range(latents[0].shape[0]):
        for item in items:
            item.plane = np.zeros(item.symbols.shape[1:], np.int64)
        predictors.append(tuple(_fit_pass(items, channel, order, counts) for order in PASSES))
        for item in items:
            item.earlier += (mirror(item.plane, 1),)
    return SymbolCoder(tuple(predictors), counts.tables())


def _check(latents: Sequence[NDArray[np.float32]], steps: Sequence[int]) -> None:
    """Refuse what cannot be fitted to."""
    if not latents or not steps:
        raise FitError(
            f"{len(latents)} latents and {len(steps)} steps were found where at least one of each "
            "is needed"
        )
    if not all(1 <= step <= MAX_STEP for step in steps):
        raise FitError(f"steps {list(steps)} were found where 1 to {MAX_STEP} are possible")
    for index, image in enumerate(latents):
        if image.ndim != 3 or image.shape[0] != latents[0].shape[0] or min(image.shape) < 1:
            raise FitError(
                f"latents {index} of shape {image.shape} were found where ({latents[0].shape[0]}, "
                "height, width) is expected; give all images the same number of channels"
            )
        if not np.isfinite(image).all():
            raise FitError(f"latents {index} hold values that are not finite; check the encoder")


def _quantise(latents: Sequence[NDArray[np.float32]], steps: Sequence[int]) -> list[_Item]:
    """Quantise images with steps in turn, each pair once at most, until there are enough."""
    items: list[_Item] = []
    num_symbols = 0
    for turn in range(len(steps)):
        for index, image in enumerate(latents):
            if items and num_symbols + image.size > _MAX_SYMBOLS:
                return items
            step = steps[(index + turn) % len(steps)]
            scaled = np.rint(image.astype(np.float64) * ((1 << STEP_BITS) / step))
            limit = SYMBOL_LIMIT - 1
            symbols = np.clip(scaled, -limit, limit).astype(np.int32)
            items.append(_Item(symbols, step, np.zeros(image.shape[1:], np.int64)))
            num_symbols += image.size
    return items


def _fit_pass(
    items: Sequence[_Item], channel: int, order: Pass, counts: ResidualCounts
) -> Predictor:
    """Fit the predictor of one pass, count its residuals and make its symbols known."""
    samples = _sample(items, channel, order)
    predictor = _fit_predictor(samples, order)
    for item in items:
        around = Neighbourhood.of(item.plane, item.earlier, order)
        symbols = order.view(item.symbols[channel]).astype(np.int64)
        if symbols.size:
            gathered = around.gather(range(around.shape[0]))
            means = predictor.means(gathered, item.step)
            scales = predictor.scales(scale_features(gathered, means, order), item.step)
            counts.add(means, scales, symbols.ravel())
            order.view(item.plane)[...] = symbols
    return predictor


def _sample(items: Sequence[_Item], channel: int, order: Pass) -> _Samples:
    """Gather evenly spread positions of a pass from all images."""
    shapes = [order.view(item.plane).shape for item in items]
    stride = max(1, -(-sum(rows * columns for rows, columns in shapes) // _MAX_SAMPLES))
    gathered, symbols, steps = [], [], []
    start = 0
    for item, (rows, columns) in zip(items, shapes, strict=True):
        kept = np.arange(start, rows * columns, stride)
        start = (start - rows * columns) % stride  # go on in the next image where this one ended
        around = Neighbourhood.of(item.plane, item.earlier, order)
        gathered.append(around.gather(range(rows if columns else 0))[:, kept])
        symbols.append(order.view(item.symbols[channel]).astype(np.int64).ravel()[kept])
        steps.append(np.full(len(kept), item.step, np.int64))
    return _Samples(
        np.concatenate(gathered, axis=1), np.concatenate(symbols), np.concatenate(steps)
    )


def _fit_predictor(samples: _Samples, order: Pass) -> Predictor:
    """Fit mean and scale in turn: positions with a small scale count more for the mean.

    In raw latent units, where images at all steps look alike. The scale minimises the code length
    of an exponential distribution, sum(log s + |r| / s), by iteratively reweighted least squares.
    """
    raw_steps = samples.steps / (1 << STEP_BITS)
    inputs = np.vstack([samples.gathered * raw_steps, np.ones_like(raw_steps)])
    targets = samples.symbols * raw_steps
    floor = 0.1 * raw_steps + 1e-6
    scales = np.ones_like(raw_steps)
    for _ in range(2):
        weights = _least_squares(inputs, targets, scales**-2)
        means = np.rint(weights @ inputs / raw_steps * 256).astype(np.int64)
        features = scale_features(samples.gathered, means, order) * (raw_steps / 256)
        features = np.vstack([features, raw_steps, np.ones_like(raw_steps)])
        deviations = np.abs(targets - weights @ inputs)
        scales = np.full_like(raw_steps, deviations.mean() + 1e-6 if len(raw_steps) else 1.0)
        for _ in range(_SCALE_ROUNDS):
            scales = np.maximum(scales, floor)
            scale_weights = _least_squares(features, deviations, scales**-2)
            scales = scale_weights @ features
        scales = np.maximum(scales, floor)
    if not len(targets):  # images too small for this pass: expect deviations of 1 in raw units
        scale_weights[-1] = 1.0
    return Predictor(
        _integers(weights[:-1], MEAN_WEIGHT_BITS, WEIGHT_LIMIT),
        int(_integers(weights[-1:], MEAN_WEIGHT_BITS, CONSTANT_LIMIT)[0]),
        _integers(scale_weights[:-2], SCALE_WEIGHT_BITS, WEIGHT_LIMIT),
        *_integers(scale_weights[-2:], SCALE_CONSTANT_BITS, CONSTANT_LIMIT).tolist(),
    )


def _least_squares(inputs: Floats, targets: Floats, importance: Floats) -> Floats:
    """Return the w that minimises sum(importance * (w @ inputs - targets)**2) plus a ridge."""
    weighted = inputs * importance
    gram = weighted @ inputs.T
    strength = _RIDGE + 1 / (1 + len(targets))
    ridge = strength * np.trace(gram) / len(gram) + 1e-9
    solution: Floats = np.linalg.solve(gram + ridge * np.eye(len(gram)), weighted @ targets)
    return solution


def _integers(values: Floats, bits: int, limit: int) -> NDArray[np.int64]:
    """Round to fixed point, kept inside the format's bound."""
    return np.clip(np.rint(values * (1 << bits)), 1 - limit, limit - 1).astype(np.int64)
