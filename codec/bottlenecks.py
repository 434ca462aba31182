"""What stands between encoder and decoder: a diagonal Gaussian (KL), or one of three quantisers.

A bottleneck says how many channels it wants from the encoder and turns them into a posterior, or
into codes and their indices. The posterior has the interface of diffusers'
`DiagonalGaussianDistribution`, which every pipeline knows. That class itself comes with all of
diffusers' networks: importing it takes a second and 90 MB of every cold start.

Every bottleneck has `in_channels`, which the encoder must give; `stride`, the side in latent cells
of its coarsest code; `margin`, how many cells past its own a latent can see; and `quantizers`, its
learned codebooks, coarse to fine. Quantisation is in float32 whatever the autocast.

Shapes: B batch, C latent channels, h w latent grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor, nn

from codec.codebooks import VectorQuantizer

_TWO_LEVEL_FEATURES = 64
"""Channels between encoder and codebooks of a two-level bottleneck, as the codes of VQ-VAE-2."""


class DiagonalGaussian:
    """A diagonal Gaussian over latents; arXiv:1312.6114.

    Attributes:
        parameters: (B, 2 * C, h, w), means and log-variances as they came from the encoder.
        mean: (B, C, h, w).
        logvar: natural logarithm of the variance, clamped to -30..20, (B, C, h, w).
        std: (B, C, h, w).
        var: (B, C, h, w).
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """A random draw (B, C, h, w); a list of generators gives each image its own."""
        shape, like = self.mean.shape, self.parameters
        noise: Tensor = randn_tensor(shape, generator, device=like.device, dtype=like.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean (B, C, h, w)."""
        return self.mean

    def kl(self, other: "DiagonalGaussian | None" = None) -> Tensor:
        """KL(self || other) in nats for each image, (B,); other is N(0, I) by default."""
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean).square() / other.var
            terms = distance + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of `sample` in nats, summed over `dims`."""
        distance = (sample - self.mean).square() / self.var
        return 0.5 * (math.log(2.0 * math.pi) + self.logvar + distance).sum(dim=dims)


class GaussianBottleneck(nn.Module):
    """A diagonal Gaussian posterior over latents (B, C, h, w).

    With `posterior_std` the standard deviation is that constant: the encoder gives means alone,
    and the noise of `sample()` stands for the quantiser of the files (a uniform step of sqrt(12)
    times the deviation has the same variance). With None the encoder gives means and
    log-variances, as in Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    stride = 1
    margin = 0

    def __init__(self, latent_channels: int, posterior_std: float | None) -> None:
        super().__init__()
        if posterior_std is not None and not posterior_std > 0:
            raise ValueError(
                f"found posterior_std {posterior_std}, expected a positive number, or None to "
                "learn it"
            )
        self.latent_channels = latent_channels
        self.posterior_std = posterior_std

    @property
    def in_channels(self) -> int:
        """Channels that the encoder must give."""
        return self.latent_channels * (1 if self.posterior_std else 2)

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """None: latents are continuous."""
        return []

    def forward(self, h: Tensor) -> DiagonalGaussian:
        """Turn encoder features (B, in_channels, h, w) into the posterior."""
        if self.posterior_std is not None:
            log_variance = torch.full_like(h, 2 * math.log(self.posterior_std))
            h = torch.cat([h, log_variance], dim=1)
        return DiagonalGaussian(h)


@dataclass
class DiscreteEncoderOutput(BaseOutput):  # type: ignore[misc]
    """What `encode` of a model with codes returns; pipelines take its `latents`.

    Attributes:
        latents: (B, C, h, w), quantised; the gradient goes straight through to the encoder.
        indices: int64, coarse to fine, one tensor a codebook: (B, h, w), and with two levels
            (B, h/2, w/2) before it.
        commitment: float32 scalar, mean squared distance of the encoder's elements to their codes
            (held constant), summed over codebooks; 0 without a learned codebook.
    """

    latents: Tensor
    indices: tuple[Tensor, ...]
    commitment: Tensor


class VectorBottleneck(nn.Module):
    """One learned codebook: VQ-VAE, arXiv:1711.00937. See `codec.codebooks`."""

    stride = 1
    margin = 0

    def __init__(self, latent_channels: int, codebook_size: int, cosine: bool) -> None:
        super().__init__()
        self.in_channels = latent_channels
        self.quantizer = VectorQuantizer(latent_channels, codebook_size, cosine=cosine)

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The codebook."""
        return [self.quantizer]

    def forward(self, h: Tensor) -> DiscreteEncoderOutput:
        """Quantise encoder features (B, C, h, w)."""
        found = self.quantizer(h)
        return DiscreteEncoderOutput(found.latents, (found.indices,), found.commitment)

    def indices_to_latents(self, indices: Sequence[Tensor]) -> Tensor:
        """Latents float32 (B, C, h, w) of one grid of indices."""
        (grid,) = indices
        return self.quantizer.lookup(grid)

    def latents_to_indices(self, latents: Tensor) -> tuple[Tensor]:
        """The one grid of indices of latents (B, C, h, w)."""
        return (self.quantizer.find(latents),)


class ScalarBottleneck(nn.Module):
    """Each channel rounds to a few levels: finite scalar quantisation, arXiv:2309.15505.

    Nothing is learned here. Level i of L in a channel is the latent (i - L // 2) / (L // 2); the
    index counts in mixed radix, the first channel fastest (the paper's appendix A.1).
    """

    stride = 1
    margin = 0

    def __init__(self, latent_channels: int, levels: Sequence[int]) -> None:
        from vector_quantize_pytorch import FSQ  # takes two seconds

        super().__init__()
        if len(levels) != latent_channels:
            raise ValueError(
                f"found latent_channels {latent_channels} and {len(levels)} fsq_levels, expected "
                "one number of levels for each latent channel"
            )
        if min(levels) < 3 or max(levels) > 256 or math.prod(levels) >= 1 << 63:
            raise ValueError(
                f"found fsq_levels {list(levels)}, expected 3 to 256 levels a channel (bfloat16 "
                "tells no more apart) and a product below 2^63"
            )
        self.in_channels = latent_channels
        self.rounding = FSQ(list(levels), return_indices=False)
        basis = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.levels: Tensor
        self.basis: Tensor

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """None: the levels are fixed."""
        return []

    def forward(self, h: Tensor) -> DiscreteEncoderOutput:
        """Quantise encoder features (B, C, h, w)."""
        rounded, _ = self.rounding(h.float())
        indices = self.latents_to_indices(rounded.detach())
        # straight through, from the library's bounded value; the sum is the code exactly
        latents = self.indices_to_latents(indices) + (rounded - rounded.detach())
        return DiscreteEncoderOutput(latents, indices, latents.new_zeros(()))

    def indices_to_latents(self, indices: Sequence[Tensor]) -> Tensor:
        """Latents float32 (B, C, h, w) in [-1, 1] of one grid of indices."""
        (grid,) = indices
        half = self.levels // 2
        digits = grid[..., None] // self.basis % self.levels
        return rearrange((digits - half).float() / half, "b h w c -> b c h w")

    def latents_to_indices(self, latents: Tensor) -> tuple[Tensor]:
        """The one grid of indices of latents (B, C, h, w), each rounded to its nearest level."""
        half = self.levels // 2
        centred = (rearrange(latents.float(), "b c h w -> b h w c") * half).round().long()
        digits = torch.minimum((centred + half).clamp(min=0), self.levels - 1)
        return ((digits * self.basis).sum(dim=-1),)


class TwoLevelBottleneck(nn.Module):
    """A coarse codebook for what is large and a fine one for the rest: VQ-VAE-2, arXiv:1906.00446.

    The top codes stand on a grid of half the side; the bottom codes see the features together with
    the decoded top codes. Latents are both: C/2 channels of bottom codes, then C/2 of top codes,
    each repeated over its 2 x 2 cells. h and w are even.
    """

    stride = 2
    margin = 4  # 3x3 at the bottom (1 cell), 3x3 at the top (2), and the cells of a top code (1)

    def __init__(self, latent_channels: int, codebook_size: int, cosine: bool) -> None:
        super().__init__()
        if latent_channels % 2:
            raise ValueError(
                f"found latent_channels {latent_channels} for bottleneck vq2, expected an even "
                "number: half for each level"
            )
        half, features = latent_channels // 2, _TWO_LEVEL_FEATURES
        self.in_channels = features
        self.to_top = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * features, features, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(features, half, 1),
        )
        self.from_top = nn.Sequential(nn.Conv2d(half, 4 * features, 1), nn.PixelShuffle(2))
        self.to_bottom = nn.Sequential(
            nn.Conv2d(2 * features, features, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(features, half, 1),
        )
        self.top = VectorQuantizer(half, codebook_size, cosine=cosine)
        self.bottom = VectorQuantizer(half, codebook_size, cosine=cosine)

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """Top, bottom."""
        return [self.top, self.bottom]

    def forward(self, h: Tensor) -> DiscreteEncoderOutput:
        """Quantise encoder features (B, in_channels, h, w)."""
        top = self.top(self.to_top(h))
        decoded_top = self.from_top(top.latents.to(h.dtype)).to(h.dtype)
        bottom = self.bottom(self.to_bottom(torch.cat([h, decoded_top], dim=1)))
        return DiscreteEncoderOutput(
            _join(bottom.latents, top.latents),
            (top.indices, bottom.indices),
            top.commitment + bottom.commitment,
        )

    def indices_to_latents(self, indices: Sequence[Tensor]) -> Tensor:
        """Latents float32 (B, C, h, w) of the top's and the bottom's indices."""
        top, bottom = indices
        return _join(self.bottom.lookup(bottom), self.top.lookup(top))

    def latents_to_indices(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (B, h/2, w/2) and (B, h, w) of latents (B, C, h, w)."""
        bottom, top = latents.chunk(2, dim=1)
        return self.top.find(top[..., ::2, ::2]), self.bottom.find(bottom)


Bottleneck = GaussianBottleneck | VectorBottleneck | ScalarBottleneck | TwoLevelBottleneck


def build_bottleneck(
    kind: str,
    latent_channels: int,
    *,
    posterior_std: float | None,
    codebook_size: int,
    codebook_cosine: bool,
    fsq_levels: Sequence[int],
) -> Bottleneck:
    """The bottleneck that a configuration names; each takes the settings that concern it.

    Raises:
        ValueError: There is no such bottleneck, or its settings do not fit.
    """
    if kind == "gaussian":
        return GaussianBottleneck(latent_channels, posterior_std)
    if kind == "vq":
        return VectorBottleneck(latent_channels, codebook_size, codebook_cosine)
    if kind == "fsq":
        return ScalarBottleneck(latent_channels, fsq_levels)
    if kind == "vq2":
        return TwoLevelBottleneck(latent_channels, codebook_size, codebook_cosine)
    raise ValueError(f"found bottleneck {kind!r}, expected gaussian, vq, fsq or vq2")


def _join(bottom: Tensor, top: Tensor) -> Tensor:
    """Bottom codes (B, C/2, h, w) and top codes (B, C/2, h/2, w/2) as latents (B, C, h, w)."""
    return torch.cat([bottom, F.interpolate(top, scale_factor=2.0, mode="nearest")], dim=1)
