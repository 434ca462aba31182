"""Raw and scaled latents, and what a tensor must look like to be either.

Raw latents are what the network makes and files hold; scaled ones are what a diffusion model wants.
Legend: N images, C latent channels, h w cells of the latent grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from codec.errors import LatentCodecError


class LatentsError(LatentCodecError):
    """Latents or image tensors of a shape or dtype that does not fit the model."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """scaled = (raw - shift_factor) * scaling_factor."""

    shift_factor: float
    scaling_factor: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Returns the scaling that an autoencoder's configuration states; none if it does not."""
        return cls(config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0)

    def scale(self, raw_latents: Tensor) -> Tensor:
        """Returns scaled latents of the same shape and dtype."""
        return (raw_latents - self.shift_factor) * self.scaling_factor

    def unscale(self, scaled_latents: Tensor) -> Tensor:
        """Returns raw latents of the same shape and dtype."""
        return scaled_latents / self.scaling_factor + self.shift_factor


def latent_batch(latents: Tensor, latent_channels: int) -> Tensor:
    """Returns latents, (N, C, h, w) or (C, h, w) of floats, as (N, C, h, w).

    Raises:
        LatentsError: They are something else.
    """
    batch = latents[None] if latents.ndim == 3 else latents
    if batch.ndim != 4 or batch.shape[1] != latent_channels or 0 in batch.shape:
        raise LatentsError(
            f"found latents of shape {tuple(latents.shape)}, expected (N, {latent_channels}, h, w)"
        )
    if not batch.is_floating_point():
        raise LatentsError(f"found latents of {batch.dtype}, expected floats")
    return batch


def image_batch(images: Tensor) -> Tensor:
    """Returns images, (N, 3, H, W) or (3, H, W) of floats, as (N, 3, H, W).

    Raises:
        LatentsError: They are something else.
    """
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] != 3 or not batch.is_floating_point() or 0 in batch.shape:
        raise LatentsError(
            f"found a tensor of {images.dtype} with shape {tuple(images.shape)}, expected floats "
            "in [-1, 1] of shape (N, 3, H, W)"
        )
    return batch
