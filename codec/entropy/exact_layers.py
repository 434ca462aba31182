"""The layers of the context model: integer arithmetic, done where it is fast and still exact.

torch multiplies integer matrices without blocking, at a quarter of float64's speed on a processor.
So a whole number here is held by a float64, times a power of two. When weights are loaded,
`context_weights.check_sums` makes sure that the sizes of a sum's terms add up to less than 2**31
units. Hence each product and each partial sum, in whatever order, blocking or fusion a processor
adds them, is a whole number of units below 2**53: float64 holds it exactly, nothing is ever
rounded, and the result is that of int64 arithmetic bit for bit. No setting lowers the precision of
float64 products (autocast leaves them alone), and nothing here runs but on the CPU.

Legend: K neighbours, C channels, n positions, H hidden units, P units of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from codec.entropy.context_weights import (
    LOG_BITS,
    MEAN_BITS,
    SUM_BITS,
    UNIT_LIMIT,
    WEIGHT_BITS,
    KindWeights,
    check_sums,
)

_TOGETHER = 1 << 9
_UNITS = 2.0**-WEIGHT_BITS  # of a sum in one of the hidden units that it becomes
_OUTPUTS = (2.0 ** (MEAN_BITS - SUM_BITS), 2.0 ** (LOG_BITS - SUM_BITS))  # of a mean, a logarithm


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the positions of a block know before any of their channels is coded.

    Attributes:
        heads: float64 (C, P, n) sums that each head starts from.
        outputs: float64 (C, 2, n) sums that each mean and logarithm starts from.
    """

    heads: Tensor
    outputs: Tensor


@dataclass(frozen=True, slots=True)
class ChannelLayers:
    """What predicts channel c once the earlier ones are known.

    Attributes:
        cross: (P, c).
        output: (2, P).
        straight_cross: (2, c).
    """

    cross: Tensor
    output: Tensor
    straight_cross: Tensor


@dataclass(frozen=True, slots=True)
class ExactLayers:
    """`KindWeights` as float64, each in units of what its sums become; inputs channel by channel.

    Attributes:
        first: (H, C * K + 1).
        first_bias: (LEVELS, H, 1).
        second: (H, H).
        second_bias: (H, 1).
        head: (C * P, H).
        head_bias: (C * P, 1).
        cross: (C * P, C - 1).
        output: (C, 2, P).
        straight: (C * 2, C * K + 1), from the inputs to the means; 0 for logarithms.
        straight_bias: (C * 2, 1).
        straight_cross: (C * 2, C - 1), like `cross`.
        channels: The last ones again, for one channel at a time.
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    head: Tensor
    head_bias: Tensor
    cross: Tensor
    output: Tensor
    straight: Tensor
    straight_bias: Tensor
    straight_cross: Tensor
    channels: tuple[ChannelLayers, ...]

    @classmethod
    def of(cls, net: KindWeights) -> Self:
        """Takes over weights.

        Raises:
            TablesError: Their sums could leave 32 bits.
        """
        check_sums(net)
        count = len(net.output)
        scales = torch.tensor(_OUTPUTS, dtype=torch.float64)[:, None]
        cross, output = net.cross.double() * _UNITS, net.output.double() * scales
        is_mean = torch.tensor([[1.0], [0.0]], dtype=torch.float64) * _OUTPUTS[0]
        straight = _reordered(net.linear.double(), count)[:, None] * is_mean
        straight_cross = net.linear_cross.double() * is_mean
        return cls(
            first=_reordered(net.first.double(), count) * _UNITS,
            first_bias=net.first_bias.double()[..., None] * _UNITS,
            second=net.second.double() * _UNITS,
            second_bias=net.second_bias.double() * _UNITS,
            head=net.head.double() * _UNITS,
            head_bias=net.head_bias.double() * _UNITS,
            cross=cross[..., :-1].flatten(0, 1),
            output=output,
            straight=straight.flatten(0, 1),
            straight_bias=(net.output_bias.double() * scales).flatten(0, 1),
            straight_cross=straight_cross[..., :-1].flatten(0, 1),
            channels=tuple(
                ChannelLayers(
                    cross[c, :, :c].contiguous(), output[c], straight_cross[c, :, :c].contiguous()
                )
                for c in range(count)
            ),
        )

    def start(self, level: int, inputs: Tensor) -> Hidden:
        """Runs the part that all channels of a position share.

        Args:
            level: Of the lattice spacing 2**level.
            inputs: float64 (C * K + 1, n), whole numbers.
        """
        heads = torch.empty((len(self.head), inputs.shape[1]), dtype=torch.float64)
        for columns in _parts(inputs.shape[1]):
            heads[:, columns] = self._heads(level, inputs[:, columns])
        outputs = torch.addmm(self.straight_bias, self.straight, inputs)
        return Hidden(self._by_channel(heads), self._by_channel(outputs))

    def finish(self, hidden: Hidden, channel: int, known: Tensor) -> Tensor:
        """Returns the outputs of one channel, float64 (2, n), whole numbers.

        Args:
            hidden: Of these positions; its part for this channel is used up.
            channel: Which one.
            known: float64 (channel, n) values of the channels before it.
        """
        layers = self.channels[channel]
        heads, outputs = hidden.heads[channel], hidden.outputs[channel]
        if channel:
            heads.addmm_(layers.cross, known)
            outputs.addmm_(layers.straight_cross, known)
        return outputs.addmm_(layers.output, _rectify(heads)).floor_()

    def run(self, level: int, inputs: Tensor, known: Tensor) -> Tensor:
        """Returns the outputs of all channels, float64 (C, 2, n), as `finish` gives each.

        Args:
            level: Of the lattice spacing 2**level.
            inputs: float64 (C * K + 1, n), whole numbers.
            known: float64 (C - 1, n) values of all channels but the last.
        """
        results = []
        for columns in _parts(inputs.shape[1]):
            x, e = inputs[:, columns], known[:, columns]
            heads = self._heads(level, x)
            outputs = torch.addmm(self.straight_bias, self.straight, x)
            if len(e):
                heads.addmm_(self.cross, e)
                outputs.addmm_(self.straight_cross, e)
            units = self._by_channel(_rectify(heads))
            results.append(self._by_channel(outputs).baddbmm_(self.output, units).floor_())
        return torch.cat(results, dim=2)

    def _heads(self, level: int, inputs: Tensor) -> Tensor:
        """Returns the sums (C * P, n) that heads start from."""
        hidden = _rectify(torch.addmm(self.first_bias[level], self.first, inputs))
        hidden = _rectify(torch.addmm(self.second_bias, self.second, hidden))
        return torch.addmm(self.head_bias, self.head, hidden)

    def _by_channel(self, rows: Tensor) -> Tensor:
        return rows.view(len(self.channels), -1, rows.shape[1])


def _parts(num_positions: int) -> Iterator[slice]:
    """Cuts columns so that what a layer takes and gives stays in a processor's cache."""
    return (slice(start, start + _TOGETHER) for start in range(0, num_positions, _TOGETHER))


def _rectify(sums: Tensor) -> Tensor:
    """Returns hidden units, in place: whole numbers from 0 to the limit, rounded down."""
    return sums.clamp_(0, UNIT_LIMIT).floor_()


def _reordered(weights: Tensor, channels: int) -> Tensor:
    """Reorders columns: stored neighbour after neighbour, used channel after channel."""
    neighbours = (weights.shape[1] - 1) // channels
    around = weights[:, :-1].reshape(len(weights), neighbours, channels).mT.flatten(1)
    return torch.cat([around, weights[:, -1:]], dim=1).contiguous()
