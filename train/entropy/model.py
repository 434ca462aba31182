"""The differentiable twin of `codec.entropy.context_network`: same lattice, same layers, floats.

It learns the integer model's weights, and charges an autoencoder for the bits of its latents while
that is trained. A symbol's probability is the mass of a logistic distribution over its interval
(Balle et al., arXiv:1611.01704; Salimans et al., arXiv:1701.05517).

Legend: B images, C channels, h w latent grid, K neighbours, n positions, H hidden units, P units of
a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.entropy.context_lattice import CONTEXT_PASSES, NUM_NEIGHBOURS, RADIUS, ContextPass
from codec.entropy.context_weights import (
    KINDS,
    LEVELS,
    UNIT_LIMIT,
    VALUE_BITS,
    VALUE_LIMIT,
)
from codec.entropy.lattice import mirrored_indices

MAX_UNIT = UNIT_LIMIT / (1 << VALUE_BITS)
MAX_VALUE = VALUE_LIMIT / (1 << VALUE_BITS)
_FLOOR = 2.0**-16  # probability that every symbol has: the tables have no empty entry either
_LOG_RANGE = (-8.0, 4.0)  # natural logarithm of a width in standard deviations


class KindNetwork(nn.Module):
    """The layers of one kind of positions; see `KindWeights`."""

    def __init__(self, num_channels: int, neighbours: int, units: int, head_units: int) -> None:
        super().__init__()
        inputs = neighbours * num_channels + 1
        self.first = nn.Linear(inputs, units)
        self.level_bias = nn.Parameter(torch.zeros(LEVELS, units))
        self.second = nn.Linear(units, units)
        self.head = nn.Linear(units, num_channels * head_units)
        self.cross = nn.Parameter(torch.zeros(num_channels, head_units, num_channels))
        self.output = nn.Parameter(torch.zeros(num_channels, 2, head_units))
        self.output_bias = nn.Parameter(torch.zeros(num_channels, 2, 1))
        self.linear = nn.Parameter(torch.zeros(num_channels, inputs))
        self.linear_cross = nn.Parameter(torch.zeros(num_channels, 1, num_channels))
        earlier = torch.tril(torch.ones(num_channels, num_channels), diagonal=-1)
        self.register_buffer("earlier", earlier[:, None, :], persistent=False)
        with torch.no_grad():
            self.output.normal_(std=0.1 / math.sqrt(head_units))
            self.cross.normal_(std=1 / math.sqrt(head_units)).mul_(self.earlier)

    def forward(self, inputs: Tensor, values: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Means and logarithms of widths in standard deviations, both (n, C).

        Args:
            inputs: (n, K * C + 1).
            values: (n, C) of the positions themselves; a channel sees those before it.
            level: of the lattice spacing 2**level.
        """
        hidden = _rectify(self.first(inputs) + self.level_bias[level])
        hidden = _rectify(self.second(hidden))
        channels = values.shape[1]
        heads = self.head(hidden).view(len(inputs), channels, -1)
        heads = heads + torch.einsum("cpe,ne->ncp", self.cross * self.earlier, values)
        output = torch.einsum("cop,ncp->nco", self.output, _rectify(heads))
        output = output + self.output_bias[:, :, 0]
        straight = inputs @ self.linear.T + values @ (self.linear_cross * self.earlier)[:, 0].T
        return output[..., 0] + straight, output[..., 1].clamp(*_LOG_RANGE)


class ContextModel(nn.Module):
    """Estimates the bits of quantised latents.

    Args:
        deviations: standard deviation of each channel of raw latents.
        units: H.
        head_units: P.
    """

    deviations: Tensor

    def __init__(self, deviations: list[float], units: int = 64, head_units: int = 24) -> None:
        super().__init__()
        self.register_buffer("deviations", torch.tensor(deviations))
        channels = len(deviations)
        self.networks = nn.ModuleDict(
            {
                kind: KindNetwork(channels, neighbours, units, head_units)
                for kind, neighbours in zip(KINDS, NUM_NEIGHBOURS, strict=True)
            }
        )

    def forward(self, latents: Tensor, steps: Tensor) -> Tensor:
        """Bits of each image.

        Args:
            latents: float (B, C, h, w) raw latents, rounded to whole steps, or with uniform noise
                of a step's width in place of rounding (arXiv:1611.01704).
            steps: float (B,) quantiser steps, in units of raw latents.

        Returns:
            float32 (B,), differentiable with respect to latents.
        """
        values = latents.float() / self.deviations[:, None, None]
        widths = (steps[:, None] / self.deviations).float()
        log_steps = torch.log2(steps / self.deviations.mean())
        seen = values.clamp(-MAX_VALUE, MAX_VALUE)
        total = torch.zeros(len(latents), device=latents.device)
        for order in CONTEXT_PASSES:
            for row, column in order.origins:
                target = values[..., row :: order.period, column :: order.period]
                if target.numel():
                    total = total + self._pass_bits(
                        order, (row, column), seen, target, widths, log_steps
                    )
        return total

    def _pass_bits(
        self,
        order: ContextPass,
        origin: tuple[int, int],
        seen: Tensor,
        target: Tensor,
        widths: Tensor,
        log_steps: Tensor,
    ) -> Tensor:
        """Bits (B,) of one grid of positions."""
        batch, channels, rows, columns = target.shape
        parts = _neighbours(order, origin, seen, (rows, columns))
        last = log_steps[:, None, None, None].expand(batch, 1, rows, columns)
        inputs = torch.cat([*parts, last], dim=1)
        flat = inputs.flatten(2).transpose(1, 2).reshape(batch * rows * columns, -1)
        symbols = target.flatten(2).transpose(1, 2).reshape(-1, channels)
        network = self.networks[KINDS[order.kind]]
        known = symbols.clamp(-MAX_VALUE, MAX_VALUE)
        means, log_widths = network(flat, known, order.level)
        steps = widths[:, None].expand(batch, rows * columns, channels).reshape(-1, channels)
        bits = logistic_bits(symbols - means, steps, log_widths)
        return bits.reshape(batch, -1).sum(dim=1)


def logistic_bits(differences: Tensor, steps: Tensor, log_widths: Tensor) -> Tensor:
    """-log2 of a logistic distribution's mass within half a step of a difference from its mean."""
    scale = torch.exp(-log_widths)
    outer = -differences.abs()  # in the lower tail the difference of sigmoids keeps its digits
    upper = torch.sigmoid((outer + steps / 2) * scale)
    lower = torch.sigmoid((outer - steps / 2) * scale)
    return -torch.log2((upper - lower) * (1 - _FLOOR) + _FLOOR)


def _neighbours(
    order: ContextPass, origin: tuple[int, int], seen: Tensor, shape: tuple[int, int]
) -> list[Tensor]:
    """Values (B, C, rows, columns) at each neighbour of a grid of positions."""
    if not order.offsets:
        return []
    spacing = 1 << order.level
    lattice = seen[..., ::spacing, ::spacing]
    rows, columns = (
        torch.from_numpy(mirrored_indices(side, RADIUS)).to(seen.device)
        for side in lattice.shape[-2:]
    )
    padded = lattice.index_select(-2, rows).index_select(-1, columns)
    top, left = (RADIUS + start // spacing for start in origin)
    height, width = (2 * count - 1 for count in shape)
    return [
        padded[..., top + dy : top + dy + height : 2, left + dx : left + dx + width : 2]
        for dy, dx in order.offsets
    ]


def _rectify(x: Tensor) -> Tensor:
    return F.hardtanh(x, 0.0, MAX_UNIT)
