"""LatentAutoencoder: the codec's network as a diffusers model, with AutoencoderKL's API.

Every diffusers pipeline can take it as its `vae`. Saved pipelines name this module, so the path
`codec.autoencoder` stays.

Shapes: B batch, C latent channels, H W pixels (multiples of f), f downscale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from codec.bottlenecks import DiagonalGaussian, GaussianBottleneck
from codec.networks import Decoder, Encoder, receptive_margin
from codec.tiling import TILE_CELLS, map_tiles

__all__ = [
    "LatentAutoencoder",
    "LatentAutoencoderOutput",
    "ModelMixin",
]  # diffusers finds ModelMixin here


@dataclass
class LatentAutoencoderOutput(BaseOutput):  # type: ignore[misc]
    """What `decode` and `forward` return.

    Attributes:
        sample: (B, 3, H, W), about [-1, 1], not clamped.
        latent_dist: of `forward`, the posterior over latents (B, C, H/f, W/f).
    """

    sample: Tensor
    latent_dist: DiagonalGaussian | None = None


class LatentAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A fast, fully convolutional autoencoder for image latents.

    Args: in_channels: channels of the image. out_channels: channels of the reconstruction.
        latent_channels: C. block_out_channels: encoder widths at H, H/2, ...; log2(f) + 1
        entries, as pipelines expect. Levels
            without blocks in front of the first one with blocks are skipped by the
            pixel-unshuffle stem.
        encoder_layers: residual blocks at each level.
        decoder_layers: the same for the decoder.
        decoder_block_out_channels: decoder widths; None means `block_out_channels`.
        posterior_std: constant standard deviation of the posterior; None to learn it.
        sample_size: image side that pipelines assume when none is asked for.
        scaling_factor: diffusion sees (latents - shift_factor) * scaling_factor.
        shift_factor: see `scaling_factor`.
        latents_mean: mean of each latent channel over a dataset, for pipelines that normalise by
            channel.
        latents_std: standard deviation of each latent channel, likewise.
        force_upcast: pipelines run the model in float32 when it is true.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResidualBlock",)
    _repeated_blocks = ("ResidualBlock",)

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (24, 48, 96, 192),
        encoder_layers: Sequence[int] = (0, 0, 2, 4),
        decoder_layers: Sequence[int] = (0, 0, 2, 4),
        decoder_block_out_channels: Sequence[int] | None = None,
        posterior_std: float | None = 0.14,
        sample_size: int = 512,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        decoder_widths = decoder_block_out_channels or block_out_channels
        if len(decoder_widths) != len(block_out_channels):
            raise ValueError(
                f"found {len(block_out_channels)} encoder widths and {len(decoder_widths)} "
                "decoder widths, expected equally many: both halves work at the same downscale"
            )
        self.bottleneck = GaussianBottleneck(latent_channels, posterior_std)
        self.encoder = Encoder(
            in_channels, self.bottleneck.in_channels, block_out_channels, encoder_layers
        )
        self.decoder = Decoder(latent_channels, out_channels, decoder_widths, decoder_layers)
        self.factor = 2 ** (len(block_out_channels) - 1)
        self.encoder_margin = receptive_margin(
            block_out_channels, encoder_layers, alignment=self.factor
        )
        self.decoder_margin = receptive_margin(
            decoder_widths, decoder_layers, alignment=self.factor
        )
        self.use_slicing = False
        self.use_tiling = False
        self.tile_cells = TILE_CELLS

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """Encode images.

        Args:
            x: (B, in_channels, H, W) in [-1, 1]; H and W multiples of f.
            return_dict: whether to return an output object or a plain tuple.

        Returns:
            An object whose `latent_dist` has `sample()`, `mode()` and `kl()`; latents are raw
            (unscaled), (B, C, H/f, W/f), of x's dtype.

        Raises:
            ValueError: a side of the image is not a multiple of f.
        """
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor or min(height, width) < self.factor:
            raise ValueError(
                f"found an image of {width}x{height} pixels, expected sides that are multiples of "
                f"{self.factor}: pad it first, or use codec.Codec, which pads and crops"
            )
        h = self._sliced(self._encode, x)
        posterior = self.bottleneck(h)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> LatentAutoencoderOutput | tuple[Tensor]:
        """Decode raw latents.

        Args:
            z: (B, C, h, w) raw latents.
            return_dict: whether to return an output object or a plain tuple.
            generator: taken because pipelines pass it; decoding is deterministic.

        Returns:
            An object whose `sample` is (B, out_channels, h * f, w * f), about [-1, 1], not clamped.
        """
        del generator
        sample = self._sliced(self._decode, z)
        return LatentAutoencoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> LatentAutoencoderOutput | tuple[Tensor]:
        """Encode and decode.

        Args:
            sample: (B, in_channels, H, W) in [-1, 1].
            sample_posterior: decode a sample of the posterior (training) instead of its mode.
            return_dict: whether to return an output object or a plain tuple.
            generator: random numbers of the posterior sample.

        Returns:
            The reconstruction and the posterior.
        """
        posterior = self.encode(sample).latent_dist
        latents = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        reconstruction = self.decode(latents).sample
        if not return_dict:
            return (reconstruction,)
        return LatentAutoencoderOutput(sample=reconstruction, latent_dist=posterior)

    def enable_tiling(self) -> None:
        """Work tile by tile: any size in bounded memory, with the same result."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Work on whole images again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Work image by image: a batch takes the memory of one."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Work on whole batches again."""
        self.use_slicing = False

    def _encode(self, x: Tensor) -> Tensor:
        if not self.use_tiling:
            return self.encoder(x)  # type: ignore[no-any-return]
        margin = self.encoder_margin // self.factor
        scales = {"in_scale": self.factor, "out_scale": 1}
        return map_tiles(self.encoder, x, margin=margin, tile=self.tile_cells, **scales)

    def _decode(self, z: Tensor) -> Tensor:
        if not self.use_tiling:
            return self.decoder(z)  # type: ignore[no-any-return]
        margin = self.decoder_margin // self.factor
        scales = {"in_scale": 1, "out_scale": self.factor}
        return map_tiles(self.decoder, z, margin=margin, tile=self.tile_cells, **scales)

    def _sliced(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.use_slicing and len(x) > 1:
            return torch.cat([run(x[i : i + 1]) for i in range(len(x))])
        return run(x)
