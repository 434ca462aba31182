"""LatentModel: images to scaled latents and back, by any autoencoder.

Legend: N images, C latent channels, h w cells of the latent grid, f downscale. *Raw* latents are
what the network makes and what files hold; *scaled* ones, (raw - shift_factor) * scaling_factor,
are what a diffusion model wants and what this class takes and gives.
"""

import warnings
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec import architectures, backbone
from codec.device import choose_device, choose_dtype
from codec.images import AlphaMode, Image, Source, load, pad
from codec.latents import LatentsError, Scaling, image_batch, latent_batch

# Lists and tuples of sources; `Sequence` would not tell them apart from one path.
Several = list[Any] | tuple[Any, ...]


class ImageWarning(UserWarning):
    """Something of an image could not be kept: its alpha, further frames, a broken profile."""


class LatentModel:
    """An autoencoder where it runs, with latents as diffusion models want them.

    Attributes:
        autoencoder: The diffusers model, in evaluation mode; any pipeline takes it as its `vae`.
        device: Where the model runs.
        dtype: What it computes in. Latents are float32 at the edges whatever it is.
        factor: f.
        multiple: What image sides are padded to a multiple of, in pixels.
        latent_channels: C.
    """

    def __init__(
        self,
        autoencoder: Any,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Moves a model to a device and dtype; see `codec.device` for what None means."""
        self.device = choose_device(device)
        upcast = bool(autoencoder.config.get("force_upcast", False))
        self.dtype = choose_dtype(self.device, dtype, force_upcast=upcast)
        # Convolutions are faster with channels last, on CPUs and on tensor cores. diffusers' own
        # `to` warns of every dtype (0.42), so torch's is called.
        nn.Module.to(autoencoder, self.device, self.dtype)
        nn.Module.to(autoencoder, memory_format=torch.channels_last)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.factor = backbone.downscale_factor(autoencoder)
        self.latent_channels = architectures.latent_channels(autoencoder.config)
        self.multiple: int = getattr(autoencoder, "multiple", self.factor)
        self._scaling = Scaling.of(autoencoder.config)

    @overload
    def encode(self, images: Tensor | Source) -> Tensor: ...
    @overload
    def encode(self, images: Several) -> Tensor | list[Tensor]: ...
    @torch.no_grad()
    def encode(self, images: Tensor | Source | Several) -> Tensor | list[Tensor]:
        """Encodes images to scaled latents.

        Args:
            images: A float tensor (N, 3, H, W) or (3, H, W) in [-1, 1], or an image (see
                `codec.images.load`: a path, a Pillow image, a uint8 array, ...), or a list of
                images. Sides that are no multiples of f are padded by repeating the last pixels.

        Returns:
            float32 (N, C, ceil(H/f), ceil(W/f)) on the codec's device; for a list whose images
            give latents of different sizes, a list of (1, C, h, w).

        Raises:
            LatentsError: The tensor has another shape or dtype.
            ImageError: An image cannot be read.
        """
        if isinstance(images, Tensor):
            return self._encode_tensor(images)
        if not isinstance(images, list | tuple):
            return self._encode_image(images)
        if not images:
            raise LatentsError("found an empty list, expected at least one image")
        latents = [self._encode_image(image) for image in images]
        same = all(part.shape == latents[0].shape for part in latents)
        return torch.cat(latents) if same else latents

    @overload
    def decode(self, latents: Tensor) -> Tensor: ...
    @overload
    def decode(self, latents: Several) -> list[Tensor]: ...
    @torch.no_grad()
    def decode(self, latents: Tensor | Several) -> Tensor | list[Tensor]:
        """Decodes scaled latents to images.

        Args:
            latents: (N, C, h, w) or (C, h, w), any float dtype, or a list of such.

        Returns:
            float32 (N, 3, h * f, w * f) in [-1, 1] on the codec's device; a list for a list.

        Raises:
            LatentsError: The latents have another shape or dtype than this model's.
        """
        if not isinstance(latents, Tensor):
            return [self.decode(part) for part in latents]
        raw_latents = self._raw(latents).to(self.dtype)
        sample = backbone.decode_raw(self.autoencoder, _channels_last(raw_latents))
        return sample.float().clamp(-1, 1)

    def _raw(self, latents: Tensor) -> Tensor:
        """Returns scaled latents as raw ones, float32 (N, C, h, w) on the codec's device."""
        batch = latent_batch(latents, self.latent_channels)
        return self._scaling.unscale(batch.to(self.device, torch.float32))

    def _encode_tensor(self, images: Tensor) -> Tensor:
        x = image_batch(images)
        bottom, right = -x.shape[-2] % self.multiple, -x.shape[-1] % self.multiple
        x = functional.pad(x.to(self.device, self.dtype), (0, right, 0, bottom), mode="replicate")
        return self._scaling.scale(backbone.encode_raw(self.autoencoder, _channels_last(x)).float())

    def _encode_image(self, source: Source) -> Tensor:
        pixels = pad(load_source(source).pixels, self.multiple)
        raw_latents = backbone.encode_pixels(self.autoencoder, pixels)
        return self._scaling.scale(torch.from_numpy(raw_latents)[None].to(self.device))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def load_source(
    source: Source,
    strict: bool = False,
    alpha: AlphaMode = "composite",
    keep_metadata: bool = False,
) -> Image:
    """Loads an image; what cannot be kept becomes a warning. See `codec.images.load`."""
    image = load(source, strict=strict, alpha=alpha, keep_metadata=keep_metadata)
    for sentence in image.warnings:
        warnings.warn(sentence, ImageWarning, stacklevel=4)
    return image
