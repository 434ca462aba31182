"""The PatchGAN discriminator and its losses: pure functions of logits and features.

Shapes: images (B, 3, H, W) in [-1, 1]; logits (B, 1, h, w), one for each patch, above 0 for real.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from codec.errors import LatentCodecError

Norm = Literal["none", "group", "batch", "spectral"]
AdversarialLoss = Literal["hinge", "non_saturating"]

MAX_GROWTH = 8
"""Widths double with each layer up to so many times the first."""
MAX_GROUPS = 32
SLOPE = 0.2
INIT_STD = 0.02


class DiscriminatorError(LatentCodecError):
    """A discriminator cannot work as configured."""


class Verdict(NamedTuple):
    """What a discriminator says.

    Attributes:
        logits: (B, 1, h, w).
        features: of each hidden layer, (B, width, height, width of the map).
    """

    logits: Tensor
    features: list[Tensor]


class PatchDiscriminator(nn.Module):
    """The PatchGAN of pix2pix (arXiv:1611.07004), in the shape that latent diffusion uses.

    `num_layers` strided 4x4 convolutions, one more without a stride, and one to the logits. As
    there, the first has no norm. Spectral norms (arXiv:1802.05957) are on all of them; they follow
    the weights when `advance_spectral` is called, not whenever the network is used.

    Args:
        channels: width of the first layer.
        num_layers: strided convolutions.
        norm: group has up to 32 groups.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3, norm: Norm = "group") -> None:
        super().__init__()
        growth = [min(2**number, MAX_GROWTH) for number in range(num_layers + 1)]
        widths = [channels * factor for factor in growth]
        blocks = [_block(3, widths[0], 2, "spectral" if norm == "spectral" else "none")]
        for number, (width_in, width) in enumerate(pairwise(widths), 1):
            blocks.append(_block(width_in, width, 2 if number < num_layers else 1, norm))
        self.blocks = nn.ModuleList(blocks)
        self.head = _convolution(widths[-1], 1, 1, norm, bias=True)
        self.min_side = 3 * 2**num_layers
        self.train(norm == "batch")

    def forward(self, images: Tensor) -> Verdict:
        """Judge images (B, 3, H, W).

        Raises:
            DiscriminatorError: a side is too small to leave a patch.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_side:
            raise DiscriminatorError(
                f"found images of {width}x{height} pixels, expected at least {self.min_side} a "
                "side for the discriminator: raise data.crop_size or lower adversarial.disc_layers"
            )
        h, features = images, []
        for block in self.blocks:
            h = block(h)
            features.append(h)
        return Verdict(self.head(h), features)


@torch.no_grad()
def advance_spectral(network: nn.Module) -> None:
    """One power iteration of each spectral norm; call once after each optimizer step.

    The norms stay as they are in between, so that every batch of a step meets the same network.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            module.train()
            _ = module.weight  # computing it iterates
            module.eval()


def discriminator_loss(real: Tensor, fake: Tensor, kind: AdversarialLoss) -> Tensor:
    """Mean over real and fake patches alike, as in latent diffusion: half the sum of both means.

    hinge: relu(1 - real) and relu(1 + fake) (arXiv:1705.02894). non_saturating: softplus(-real) and
    softplus(fake), the cross entropy (arXiv:1406.2661).
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())
    return 0.5 * (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean())


def generator_loss(fake: Tensor, kind: AdversarialLoss) -> Tensor:
    """What the codec minimises: -logit (hinge), or softplus(-logit) (non_saturating)."""
    return -fake.float().mean() if kind == "hinge" else F.softplus(-fake.float()).mean()


def feature_distance(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """L1 of features, mean over layers (pix2pixHD, arXiv:1711.11585); no gradient to real ones."""
    layers = [
        F.l1_loss(ours.float(), theirs.detach().float())
        for theirs, ours in zip(real, fake, strict=True)
    ]
    return torch.stack(layers).mean()


def r1_penalty(judge: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """E |gradient of D at real images|^2, unweighted, in float32 (R1, arXiv:1801.04406).

    For logits of many patches, the squared gradient of their sum is divided by their number: if
    patches did not overlap, that would be the mean over patches of each one's own penalty. With one
    logit it is R1 as published.

    Args:
        judge: maps images (B, 3, H, W) to logits (B, 1, h, w).
        x: real images.
    """
    x = x.detach().float().requires_grad_(True)
    with torch.autocast(x.device.type, enabled=False):
        logits = judge(x)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).mean() / logits[0].numel()


def _block(width_in: int, width: int, stride: int, norm: Norm) -> nn.Sequential:
    """Convolution, norm, LeakyReLU."""
    layers: list[nn.Module] = [
        _convolution(width_in, width, stride, norm, bias=norm in ("none", "spectral"))
    ]
    if norm == "group":
        layers.append(nn.GroupNorm(math.gcd(MAX_GROUPS, width), width))
    elif norm == "batch":
        layers.append(nn.BatchNorm2d(width))
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE))


def _convolution(width_in: int, width: int, stride: int, norm: Norm, *, bias: bool) -> nn.Module:
    """A 4x4 convolution with pix2pix's initial values."""
    layer = nn.Conv2d(width_in, width, 4, stride, padding=1, bias=bias)
    nn.init.normal_(layer.weight, 0.0, INIT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer) if norm == "spectral" else layer
