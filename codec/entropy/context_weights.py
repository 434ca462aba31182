"""The integer weights of the learned context model, the units of its numbers, and their bounds.

Legend: K neighbours, C channels, H hidden units, P units of a head.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from codec.entropy.tables import TablesError

VALUE_BITS = 7  # of values and hidden units
WEIGHT_BITS = 10
MEAN_BITS = 12  # of a mean, in standard deviations
LOG_BITS = 5  # of binary logarithms of scales
SUM_BITS = VALUE_BITS + WEIGHT_BITS
VALUE_LIMIT = (1 << 12) - 1  # 32 standard deviations
UNIT_LIMIT = (1 << 11) - 1  # hidden units end at 16
LEVELS = 3  # lattice spacings 1, 2, 4
STEP_BITS = 16  # quantiser steps and standard deviations count 2**-16
KINDS = ("root", "diagonal", "edge")

_SUM_LIMIT = (1 << 31) - 1


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


def check_sums(net: KindWeights) -> None:
    """Refuses weights whose sums could leave 32 bits.

    Raises:
        TablesError: Some could.
    """
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
