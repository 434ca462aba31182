"""The learned context model in integers: what is decoded so far to a symbol's mean and scale.

Positions are coded coarse to fine (see `codec.entropy.context_lattice`), all channels of a position
one after another. A small network with two hidden layers looks at the known neighbours in all
channels; one head a channel adds the channels of the same position that are known already. This is
the factorisation of autoregressive priors (Minnen et al., arXiv:1809.02736) and channel
conditioning (arXiv:2007.08739) on an interlaced order that needs few steps.

Everything is integers with shifts that round down, so each machine, number of threads and batch
gets the same numbers; sums are bounded when weights are loaded and computed without rounding, see
`codec.entropy.exact_layers`. Values enter in units of 2**-7 standard deviations of their channel,
whatever the quantiser's step: one set of weights serves every step.

Legend: K neighbours, C channels, n positions, H hidden units, P units of a head.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.entropy.context_weights import (
    LOG_BITS,
    MEAN_BITS,
    STEP_BITS,
    UNIT_LIMIT,
    VALUE_BITS,
    VALUE_LIMIT,
    KindWeights,
)
from codec.entropy.exact_layers import ExactLayers, Hidden
from codec.entropy.tables import FRACTION_BITS

_MULTIPLIER_LIMIT = 1 << 40
_RATIO_LIMIT = 1 << 36  # a deviation of 2**20 symbols, which is as far as these go
_PREDICTION_LIMIT = (1 << (20 + FRACTION_BITS)) - 1  # a symbol's own limit, in units of 2**-8


@dataclass(frozen=True, slots=True)
class StepScale:
    """What depends on the quantiser step alone.

    Attributes:
        to_values: (C,) a symbol times this, shifted right by 16, is its value.
        to_symbols: (C,) standard deviations in symbols, in units of 2**-16.
        logarithms: (C,) binary logarithms of the standard deviations in symbols, units of 2**-5.
        log_step: of the step in mean standard deviations, units of 2**-7: an input.
    """

    to_values: NDArray[np.int64]
    to_symbols: NDArray[np.int64]
    logarithms: NDArray[np.int64]
    log_step: int

    def values(self, symbols: NDArray[np.int64], first: int = 0) -> NDArray[np.int64]:
        """Returns symbols (c, n, B) of the channels from `first` on as the network sees them."""
        factors = self.to_values[first : first + len(symbols), None, None]
        scaled: NDArray[np.int64] = symbols * factors
        scaled += 1 << 15
        scaled >>= 16
        np.minimum(scaled, VALUE_LIMIT, out=scaled)
        np.maximum(scaled, -VALUE_LIMIT, out=scaled)
        return scaled


@dataclass(frozen=True, slots=True)
class ContextNetwork:
    """The network of all kinds of positions.

    Attributes:
        deviations: (C,) int64 standard deviations of raw latents, units of 2**-16.
        weights: One for each of `KINDS`.
    """

    deviations: NDArray[np.int64]
    weights: tuple[KindWeights, ...]
    _step_unit: int = field(init=False, repr=False, compare=False)
    _layers: tuple[ExactLayers, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_step_unit", int(self.deviations.mean()))
        object.__setattr__(self, "_layers", tuple(map(ExactLayers.of, self.weights)))

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.deviations)

    def scale_for(self, step: int) -> StepScale:
        """Returns what depends on the step, in units of 2**-16."""
        ratios = [
            min(max(1, (int(std) << STEP_BITS) // step), _RATIO_LIMIT) for std in self.deviations
        ]
        values = [
            min((step << (VALUE_BITS + STEP_BITS)) // int(std), _MULTIPLIER_LIMIT)
            for std in self.deviations
        ]
        log_step = -log2_fixed(max(1, (self._step_unit << STEP_BITS) // step), VALUE_BITS)
        return StepScale(
            to_values=np.array(values, np.int64),
            to_symbols=np.array(ratios, np.int64),
            logarithms=np.array([log2_fixed(ratio, LOG_BITS) for ratio in ratios], np.int64),
            log_step=max(-UNIT_LIMIT, min(UNIT_LIMIT, log_step)),
        )

    def start(self, kind: int, level: int, inputs: Tensor) -> Hidden:
        """Runs the part that all channels of a position share.

        Args:
            kind: Place in `KINDS`.
            level: Of the lattice spacing 2**level.
            inputs: float64 (C * K + 1, n) of whole numbers: the neighbours' values channel after
                channel, the step's logarithm in the last row.
        """
        return self._layers[kind].start(level, inputs)

    def predict(
        self, kind: int, hidden: Hidden, channel: int, known: Tensor, scale: StepScale
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the means and scales of one channel at n positions.

        Args:
            kind: Place in `KINDS`.
            hidden: Of these positions; its part for this channel is used up.
            channel: Which one.
            known: float64 (channel, n) values of the channels before it.
            scale: Of the quantiser step.

        Returns:
            int64 (n,) means in units of 2**-8 symbols, and binary logarithms of the expected
            absolute difference in symbols, in units of 2**-5.
        """
        outputs = self._layers[kind].finish(hidden, channel, known).to(torch.int64).numpy()
        means, logarithms = outputs
        logarithms += scale.logarithms[channel]
        return _in_symbols(means, scale.to_symbols[channel]), logarithms

    def predict_all(
        self, kind: int, level: int, inputs: Tensor, known: Tensor, scale: StepScale
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns what `start` and `predict` give for each channel, int64 (C, n).

        Args:
            kind: As for `start`.
            level: As for `start`.
            inputs: As for `start`.
            known: float64 (C - 1, n) values of all channels but the last.
            scale: Of the quantiser step.
        """
        outputs = self._layers[kind].run(level, inputs, known).to(torch.int64).numpy()
        means, logarithms = outputs[:, 0], outputs[:, 1]
        logarithms += scale.logarithms[:, None]
        return _in_symbols(means, scale.to_symbols[:, None]), logarithms


def _in_symbols(
    deviations: NDArray[np.int64], ratios: NDArray[np.int64] | np.int64
) -> NDArray[np.int64]:
    """Returns means in units of 2**-12 standard deviations in units of 2**-8 symbols."""
    shift = MEAN_BITS + STEP_BITS - FRACTION_BITS
    means: NDArray[np.int64] = deviations * ratios
    means += 1 << (shift - 1)
    means >>= shift
    np.minimum(means, _PREDICTION_LIMIT, out=means)
    np.maximum(means, -_PREDICTION_LIMIT, out=means)
    return means


def log2_fixed(value: int, bits: int) -> int:
    """Returns floor(log2(value / 2**16) * 2**bits) for a positive integer, exactly.

    The floor of log2(v) * 2**b is one less than the number of binary digits of v ** (2**b).
    """
    return int((value ** (1 << bits)).bit_length() - 1) - (STEP_BITS << bits)
