"""Encoder and decoder: the fast convolutional network, visible at a glance.

Pixel-unshuffle brings the image at once to a coarse level where wide convolutions are cheap;
residual blocks without normalisation follow, level by level. Nothing looks further than a fixed
number of pixels (no attention, no group statistics), so that tiles with a margin of
`encoder_margin` / `decoder_margin` give exactly what the whole image gives.

Shapes: B batch, C latent channels, H W pixels, f downscale = 2 ** (len(widths) - 1).
Level i works at H / 2**i. The first level with blocks holds the stem; finer levels are skipped.
Sources: pixel shuffle, arXiv:1609.05158; residual blocks without normalisation, EDSR,
arXiv:1707.02921; both halves conditioned on a class label, CVAE (Sohn, Lee and Yan: Learning
Structured Output Representation using Deep Conditional Generative Models, NeurIPS 2015).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
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
    """A sequence of stages that can trade memory for time by gradient checkpointing.

    With `num_classes`, each class has a learned bias for every channel after the first
    convolution. It is the same everywhere in the image, so tiles stay exact, and it starts at
    zero: the network without labels.
    """

    def __init__(self, stages: Sequence[nn.Module], num_classes: int | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Checkpoint | None = None  # set by diffusers
        self.first_convolution, channels = next(
            (number, stage.out_channels)
            for number, stage in enumerate(stages)
            if isinstance(stage, nn.Conv2d)
        )
        self.class_bias: nn.Parameter | None = None
        if num_classes is not None:
            self.class_bias = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Run every stage; with `gradient_checkpointing`, blocks are recomputed backwards.

        Args:
            x: (B, D, h, w).
            class_labels: int64 (B,), -1 for none; only with `num_classes`, which needs them.
        """
        recompute = self._gradient_checkpointing_func if self.gradient_checkpointing else None
        for number, stage in enumerate(self.stages):
            if (
                recompute is not None
                and isinstance(stage, ResidualBlock)
                and torch.is_grad_enabled()
            ):
                x = recompute(stage, x)
            else:
                x = stage(x)
            if self.class_bias is not None and number == self.first_convolution:
                assert class_labels is not None
                x = x + _bias_of_class(self.class_bias, class_labels).to(x.dtype)
        return x


class Encoder(Trunk):
    """Image (B, in_channels, H, W) in [-1, 1] -> moments (B, out_channels, H/f, W/f)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers: Sequence[int],
        num_classes: int | None = None,
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
        super().__init__(stages, num_classes)


class Decoder(Trunk):
    """Latents (B, C, H/f, W/f) -> image (B, out_channels, H, W), about [-1, 1], not clamped.

    With `in_conv` a 1x1 convolution stands before the rest, as AutoencoderKL's post_quant_conv. A
    shift of the latents can be folded into it and nowhere else: what a 3x3 convolution adds for
    the shift would be wrong at the image's edge, where it sees zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers: Sequence[int],
        num_classes: int | None = None,
        in_conv: bool = False,
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
        super().__init__(stages, num_classes)
        self.in_conv = nn.Conv2d(in_channels, in_channels, 1) if in_conv else None

    def forward(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Decode latents (B, C, H/f, W/f); see `Trunk.forward`."""
        return super().forward(x if self.in_conv is None else self.in_conv(x), class_labels)


def first_level(widths: Sequence[int], layers: Sequence[int]) -> int:
    """The finest level that has blocks: where the stem ends."""
    if len(widths) != len(layers):
        raise ValueError(
            f"found {len(widths)} widths and {len(layers)} layer counts, expected one of each "
            "a level: give block_out_channels and encoder_layers/decoder_layers the same length"
        )
    return next((level for level, count in enumerate(layers) if count > 0), len(widths) - 1)


def receptive_margin(
    widths: Sequence[int], layers: Sequence[int], *, alignment: int, further: int = 0
) -> int:
    """How far an output can see past its own cell, in pixels, rounded up to `alignment`.

    Each 3x3 convolution at level i reaches 2**i pixels further; a block has two, stem and head
    one each. What follows the head reaches `further` cells of the latent grid.
    """
    first = first_level(widths, layers)
    reach = (1 << first) + ((1 + further) << (len(widths) - 1))
    reach += sum(2 * count << level for level, count in enumerate(layers))
    return -(-reach // alignment) * alignment


def checked_labels(
    class_labels: Tensor | None, num_classes: int | None, x: Tensor
) -> Tensor | None:
    """Class labels as the network takes them, int64 (B,), or None if it takes none.

    A conditional network always gets labels, -1 where there are none, so that its biases take part
    in every pass: data-parallel training expects that of all parameters.

    Raises:
        ValueError: The labels are not the model's.
    """
    if num_classes is None:
        if class_labels is not None:
            raise ValueError("found class_labels for a model without num_classes, expected none")
        return None
    if class_labels is None:
        return torch.full((len(x),), -1, device=x.device)
    if class_labels.shape != (len(x),) or class_labels.dtype != torch.int64:
        raise ValueError(
            f"found class_labels {class_labels.dtype} {tuple(class_labels.shape)}, expected "
            f"torch.int64 ({len(x)},): one for each image"
        )
    # a look at labels on a GPU would wait for it; there the lookup itself fails
    if class_labels.device.type == "cpu":
        low, high = class_labels.aminmax()
        if low < -1 or high >= num_classes:
            raise ValueError(
                f"found class_labels from {int(low)} to {int(high)}, expected 0 to "
                f"{num_classes - 1}, or -1 for no label"
            )
    return class_labels.to(x.device)


def _bias_of_class(class_bias: Tensor, class_labels: Tensor) -> Tensor:
    """The rows (B, D, 1, 1) of labels int64 (B,); zeros for -1."""
    has_label = class_labels != -1
    rows = F.embedding(class_labels.where(has_label, 0), class_bias)
    return (rows * has_label[:, None])[..., None, None]
