"""Encoder and decoder: the fast convolutional network, visible at a glance.

Pixel-unshuffle brings the image at once to a coarse level where wide convolutions are cheap;
residual blocks without normalisation follow, level by level. Nothing looks further than a fixed
number of pixels (no attention, no group statistics), so that tiles with a margin of
`encoder_margin` / `decoder_margin` give exactly what the whole image gives.

Shapes: B batch, C latent channels, H W pixels, f downscale = 2 ** (len(widths) - 1).
Level i works at H / 2**i. The first level with blocks holds the stem; finer levels are skipped.
Sources: pixel shuffle, arXiv:1609.05158; residual blocks without normalisation, EDSR,
arXiv:1707.02921.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Checkpoint = Callable[..., Tensor]


class ResidualBlock(nn.Module):
    """x + conv3x3(silu(conv3x3(x))); the last convolution starts at zero: an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, D, h, w)."""
        return x + self.conv2(self.act(self.conv1(x)))  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """A sequence of stages that can trade memory for time by gradient checkpointing."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Checkpoint | None = None  # set by diffusers

    def forward(self, x: Tensor) -> Tensor:
        """Run every stage; with `gradient_checkpointing`, blocks are recomputed backwards."""
        recompute = self._gradient_checkpointing_func if self.gradient_checkpointing else None
        for stage in self.stages:
            if (
                recompute is not None
                and isinstance(stage, ResidualBlock)
                and torch.is_grad_enabled()
            ):
                x = recompute(stage, x)
            else:
                x = stage(x)
        return x


class Encoder(Trunk):
    """Image (B, in_channels, H, W) in [-1, 1] -> moments (B, out_channels, H/f, W/f)."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], layers: Sequence[int]
    ) -> None:
        first = first_level(widths, layers)
        stem = 2**first
        stages: list[nn.Module] = [
            nn.PixelUnshuffle(stem),
            nn.Conv2d(in_channels * stem**2, widths[first], 3, padding=1),
        ]
        for level in range(first, len(widths)):
            if level > first:
                stages.append(nn.PixelUnshuffle(2))
                stages.append(nn.Conv2d(4 * widths[level - 1], widths[level], 1))
            stages.extend(ResidualBlock(widths[level]) for _ in range(layers[level]))
        stages.append(nn.Conv2d(widths[-1], out_channels, 3, padding=1))
        super().__init__(stages)


class Decoder(Trunk):
    """Latents (B, C, H/f, W/f) -> image (B, out_channels, H, W), about [-1, 1], not clamped."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], layers: Sequence[int]
    ) -> None:
        first = first_level(widths, layers)
        stem = 2**first
        stages: list[nn.Module] = [nn.Conv2d(in_channels, widths[-1], 3, padding=1)]
        for level in reversed(range(first, len(widths))):
            stages.extend(ResidualBlock(widths[level]) for _ in range(layers[level]))
            if level > first:
                stages.append(nn.Conv2d(widths[level], 4 * widths[level - 1], 1))
                stages.append(nn.PixelShuffle(2))
        stages.append(nn.Conv2d(widths[first], out_channels * stem**2, 3, padding=1))
        stages.append(nn.PixelShuffle(stem))
        super().__init__(stages)


def first_level(widths: Sequence[int], layers: Sequence[int]) -> int:
    """The finest level that has blocks: where the stem ends."""
    if len(widths) != len(layers):
        raise ValueError(
            f"found {len(widths)} widths and {len(layers)} layer counts, expected one of each "
            "a level: give block_out_channels and encoder_layers/decoder_layers the same length"
        )
    return next((level for level, count in enumerate(layers) if count > 0), len(widths) - 1)


def receptive_margin(widths: Sequence[int], layers: Sequence[int], *, alignment: int) -> int:
    """How far an output can see past its own cell, in pixels, rounded up to `alignment`.

    Each 3x3 convolution at level i reaches 2**i pixels further; a block has two, stem and head
    one each.
    """
    first = first_level(widths, layers)
    reach = (1 << first) + (1 << (len(widths) - 1))
    reach += sum(2 * count << level for level, count in enumerate(layers))
    return -(-reach // alignment) * alignment
