"""The learned context model in integers: what is decoded so far to a symbol's mean and scale.

Positions are coded coarse to fine (see `codec.entropy.context_lattice`), all channels of a position
one after another. A small network with two hidden layers looks at the known neighbours in all
channels; one head a channel adds the channels of the same position that are known already. This is
the factorisation of autoregressive priors (Minnen et al., arXiv:1809.02736) and channel
conditioning (arXiv:2007.08739) on an interlaced order that needs few steps.

Everything is int32 with shifts that round down, so each machine, number of threads and batch gets
the same numbers; sums are bounded when weights are loaded. Values enter in units of 2**-7 standard
deviations of their channel, whatever the quantiser's step: one set of weights serves every step.

Legend: K neighbours, C channels, n positions, H hidden units, P units of a head.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codec.entropy.tables import FRACTION_BITS, TablesError

VALUE_BITS = 7  # of values and hidden units
WEIGHT_BITS = 10
MEAN_BITS = 12  # of a mean, in standard deviations
LOG_BITS = 5  # of binary logarithms of scales
VALUE_LIMIT = (1 << 12) - 1  # 32 standard deviations
UNIT_LIMIT = (1 << 11) - 1  # hidden units end at 16
LEVELS = 3  # lattice spacings 1, 2, 4
STEP_BITS = 16  # quantiser steps and standard deviations count 2**-16
KINDS = ("root", "diagonal", "edge")

_ONE_BITS = VALUE_BITS + WEIGHT_BITS
_MULTIPLIER_LIMIT = 1 << 40
_RATIO_LIMIT = 1 << 36  # a deviation of 2**20 symbols, which is as far as these go
_SUM_LIMIT = (1 << 31) - 1
_PREDICTION_LIMIT = (1 << (20 + FRACTION_BITS)) - 1  # a symbol's own limit, in units of 2**-8


@dataclass(frozen=True, slots=True)
class KindWeights:
    """The network of one kind of positions; all int32, biases in units of 2**-17.

    Attributes:
        first: (H, K * C + 1) over the neighbours and the step's logarithm.
        first_bias: (LEVELS, H).
        second: (H, H).
        second_bias: (H, 1).
        head: (C * P, H), channel after channel.
        head_bias: (C * P, 1).
        cross: (C, P, C), from channels before a channel; zero for the others.
        output: (C, 2, P) to the mean's correction and the scale's binary logarithm.
        output_bias: (C, 2, 1).
        linear: (C, K * C + 1) straight from the input to the mean.
        linear_cross: (C, 1, C), like `cross`.
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    head: Tensor
    head_bias: Tensor
    cross: Tensor
    output: Tensor
    output_bias: Tensor
    linear: Tensor
    linear_cross: Tensor


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

    def values(self, symbols: NDArray[np.int64], channel: int) -> NDArray[np.int32]:
        """Symbols of a channel as the network sees them."""
        scaled = (symbols * self.to_values[channel] + (1 << 15)) >> 16
        values: NDArray[np.int64] = np.minimum(np.maximum(scaled, -VALUE_LIMIT), VALUE_LIMIT)
        return values.astype(np.int32)


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the positions of a block know before any of their channels is coded.

    Attributes:
        heads: (C, P, n) sums that each head starts from.
        means: (C, n) sums that each mean starts from.
    """

    heads: Tensor
    means: Tensor


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "_step_unit", int(self.deviations.mean()))
        for weights in self.weights:
            _check_sums(weights)

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
            inputs: int32 (K * C + 1, n), the step's logarithm in the last row.
        """
        net = self.weights[kind]
        hidden = _rectify(net.first @ inputs + net.first_bias[level][:, None])
        hidden = _rectify(net.second @ hidden + net.second_bias)
        heads = net.head @ hidden + net.head_bias
        return Hidden(heads.view(self.num_channels, -1, inputs.shape[1]), net.linear @ inputs)

    def predict(
        self, kind: int, hidden: Hidden, channel: int, earlier: Tensor, scale: StepScale
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the means and scales of one channel at n positions.

        Args:
            kind: Place in `KINDS`.
            hidden: Of these positions.
            channel: Which one.
            earlier: int32 (channel, n) values of the channels before it.
            scale: Of the quantiser step.

        Returns:
            int64 (n,) means in units of 2**-8 symbols, and binary logarithms of the expected
            absolute difference in symbols, in units of 2**-5.
        """
        net = self.weights[kind]
        head, mean = hidden.heads[channel], hidden.means[channel : channel + 1]
        if channel:
            head = head + net.cross[channel, :, :channel] @ earlier
            mean = mean + net.linear_cross[channel, :, :channel] @ earlier
        output = net.output[channel] @ _rectify(head) + net.output_bias[channel]
        deviations = ((mean + output[:1]) >> (_ONE_BITS - MEAN_BITS))[0].numpy().astype(np.int64)
        shift = MEAN_BITS + STEP_BITS - FRACTION_BITS
        means = (deviations * scale.to_symbols[channel] + (1 << (shift - 1))) >> shift
        logarithms = (output[1] >> (_ONE_BITS - LOG_BITS)).numpy().astype(np.int64)
        means = np.minimum(np.maximum(means, -_PREDICTION_LIMIT), _PREDICTION_LIMIT)
        return means, logarithms + scale.logarithms[channel]


def log2_fixed(value: int, bits: int) -> int:
    """Returns floor(log2(value / 2**16) * 2**bits) for a positive integer, exactly.

    The floor of log2(v) * 2**b is one less than the number of binary digits of v ** (2**b).
    """
    return int((value ** (1 << bits)).bit_length() - 1) - (STEP_BITS << bits)


def _rectify(sums: Tensor) -> Tensor:
    """Returns hidden units of sums in units of 2**-17."""
    return (sums >> WEIGHT_BITS).clamp_(0, UNIT_LIMIT)


def _check_sums(net: KindWeights) -> None:
    """Refuses weights whose sums could leave int32."""
    inputs, units = VALUE_LIMIT, UNIT_LIMIT
    largest = max(
        _bound(net.first, inputs) + _largest(net.first_bias),
        _bound(net.second, units) + _largest(net.second_bias),
        _bound(net.head, units) + _largest(net.head_bias) + _bound(net.cross, inputs),
        _bound(net.linear, inputs)
        + _bound(net.linear_cross, inputs)
        + _bound(net.output, units)
        + _largest(net.output_bias),
    )
    if largest > _SUM_LIMIT:
        raise TablesError(
            f"context weights whose sums reach 2**{math.log2(largest):.1f} were found where 2**31 "
            "is the limit; export the model again"
        )


def _bound(weights: Tensor, limit: int) -> int:
    """Returns the largest sum of a row's weights with inputs up to the limit."""
    rows = weights.long().abs().sum(dim=-1)
    return int(rows.max()) * limit if rows.numel() else 0


def _largest(values: Tensor) -> int:
    return int(values.long().abs().max())
