"""LatentAutoencoder: the codec's network as a diffusers model, with AutoencoderKL's API.

Every diffusers pipeline can take it as its `vae`. Saved pipelines name this module, so the path
`codec.autoencoder` stays.

Shapes: B batch, C latent channels, H W pixels (multiples of f), f downscale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from codec.bottlenecks import (
    DiagonalGaussian,
    DiscreteEncoderOutput,
    GaussianBottleneck,
    ScalarBottleneck,
    TwoLevelBottleneck,
    VectorBottleneck,
    build_bottleneck,
)
from codec.codebooks import VectorQuantizer
from codec.networks import Decoder, Encoder, checked_labels, receptive_margin
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
        latent_dist: of `forward`, the posterior over latents (B, C, H/f, W/f), if there is one.
        indices: of `forward` with codes, as in `DiscreteEncoderOutput`.
        commitment: likewise.
    """

    sample: Tensor
    latent_dist: DiagonalGaussian | None = None
    indices: tuple[Tensor, ...] | None = None
    commitment: Tensor | None = None


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
        bottleneck: gaussian, vq (a codebook), vq2 (a coarse and a fine codebook) or fsq (levels in
            each channel); see `codec.bottlenecks`.
        posterior_std: gaussian: constant standard deviation of the posterior; None to learn it.
        codebook_size: vq, vq2: codes of each codebook.
        codebook_cosine: vq, vq2: codes of unit length, the nearest by angle.
        fsq_levels: fsq: levels of each latent channel.
        num_classes: class labels that encoder and decoder are conditioned on; None for none.
        sample_size: image side that pipelines assume when none is asked for.
        scaling_factor: diffusion sees (latents - shift_factor) * scaling_factor.
        shift_factor: see `scaling_factor`.
        latents_mean: mean of each latent channel over a dataset, for pipelines that normalise by
            channel.
        latents_std: standard deviation of each latent channel, likewise.
        force_upcast: pipelines run the model in float32 when it is true.
        decoder_in_conv: a 1x1 convolution before the decoder, which holds the scale and shift of
            latents that `codec.conversion.folding` folded into the network.
    """

    _supports_gradient_checkpointing = True
    # else diffusers may keep the dtype of the file, going by that of a codebook's boolean
    _supports_param_buffer_assignment = False
    _no_split_modules = ("ResidualBlock",)
    _repeated_blocks = ("ResidualBlock",)
    # `encode` and `decode` are not `forward`, before which diffusers would bring the whole model
    _group_offload_block_modules = ("encoder", "bottleneck", "decoder")

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
        bottleneck: str = "gaussian",
        posterior_std: float | None = 0.14,
        codebook_size: int = 4096,
        codebook_cosine: bool = False,
        fsq_levels: Sequence[int] = (8, 8, 8, 8),
        num_classes: int | None = None,
        sample_size: int = 512,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = False,
        decoder_in_conv: bool = False,
    ) -> None:
        super().__init__()
        decoder_widths = decoder_block_out_channels or block_out_channels
        if len(decoder_widths) != len(block_out_channels):
            raise ValueError(
                f"found {len(block_out_channels)} encoder widths and {len(decoder_widths)} "
                "decoder widths, expected equally many: both halves work at the same downscale"
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"found num_classes {num_classes}, expected at least 1, or None")
        self.bottleneck = build_bottleneck(
            bottleneck,
            latent_channels,
            posterior_std=posterior_std,
            codebook_size=codebook_size,
            codebook_cosine=codebook_cosine,
            fsq_levels=fsq_levels,
        )
        self.encoder = Encoder(
            in_channels,
            self.bottleneck.in_channels,
            block_out_channels,
            encoder_layers,
            num_classes,
        )
        self.decoder = Decoder(
            latent_channels,
            out_channels,
            decoder_widths,
            decoder_layers,
            num_classes,
            decoder_in_conv,
        )
        self.factor = 2 ** (len(block_out_channels) - 1)
        self.multiple = self.factor * self.bottleneck.stride
        self.encoder_margin = receptive_margin(
            block_out_channels,
            encoder_layers,
            alignment=self.multiple,
            further=self.bottleneck.margin,
        )
        self.decoder_margin = receptive_margin(
            decoder_widths, decoder_layers, alignment=self.factor
        )
        self.use_slicing = False
        self.use_tiling = False
        self.tile_cells = TILE_CELLS

    def __getattr__(self, name: str) -> Any:
        """Diffusers warns of attributes with the name of a setting; `bottleneck` is both."""
        modules = self.__dict__.get("_modules", {})
        return modules[name] if name in modules else super().__getattr__(name)

    @property
    def post_quant_conv(self) -> nn.Module:
        """The first layer that latents meet; with `force_upcast`, SDXL asks it for its dtype."""
        return self.decoder.in_conv or self.decoder.stages[0]

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The learned codebooks, coarse to fine; empty without any."""
        return self.bottleneck.quantizers

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: Tensor, return_dict: bool = True, class_labels: Tensor | None = None
    ) -> AutoencoderKLOutput | DiscreteEncoderOutput | tuple[Any, ...]:
        """Encode images.

        Args:
            x: (B, in_channels, H, W) in [-1, 1]; H and W multiples of f, with vq2 of 2 f.
            return_dict: whether to return an output object or a plain tuple.
            class_labels: int64 (B,), -1 for none; only with `num_classes`.

        Returns:
            With a gaussian bottleneck an object whose `latent_dist` has `sample()`, `mode()` and
            `kl()`; else one with `latents`, `indices` and `commitment`. Latents are raw
            (unscaled), (B, C, H/f, W/f), of x's dtype; codes of the model's dtype.

        Raises:
            ValueError: a side of the image is not such a multiple, or a label is out of range.
        """
        height, width = x.shape[-2:]
        multiple = self.multiple
        if height % multiple or width % multiple or min(height, width) < multiple:
            raise ValueError(
                f"found an image of {width}x{height} pixels, expected sides that are multiples of "
                f"{multiple}: pad it first, or use codec.Codec, which pads and crops"
            )
        h = self._sliced(self._encode, x, class_labels)
        found = self.bottleneck(h)
        if isinstance(found, DiagonalGaussian):
            return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)
        found.latents = found.latents.to(self.dtype)
        return found if return_dict else found.to_tuple()

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        class_labels: Tensor | None = None,
    ) -> LatentAutoencoderOutput | tuple[Tensor]:
        """Decode raw latents.

        Args:
            z: (B, C, h, w) raw latents.
            return_dict: whether to return an output object or a plain tuple.
            generator: taken because pipelines pass it; decoding is deterministic.
            class_labels: as for `encode`.

        Returns:
            An object whose `sample` is (B, out_channels, h * f, w * f), about [-1, 1], not clamped.
        """
        del generator
        sample = self._sliced(self._decode, z, class_labels)
        return LatentAutoencoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: Tensor | None = None,
    ) -> LatentAutoencoderOutput | tuple[Tensor]:
        """Encode and decode.

        Args:
            sample: (B, in_channels, H, W) in [-1, 1].
            sample_posterior: decode a sample of the posterior (training) instead of its mode;
                codes have neither.
            return_dict: whether to return an output object or a plain tuple.
            generator: random numbers of the posterior sample; a list has one for each image.
            class_labels: as for `encode`.

        Returns:
            The reconstruction, and the posterior or the codes.
        """
        encoded = self.encode(sample, class_labels=class_labels)
        facts: dict[str, Any] = {}
        if isinstance(encoded, DiscreteEncoderOutput):
            latents = encoded.latents
            facts = {"indices": encoded.indices, "commitment": encoded.commitment}
        else:
            posterior = encoded.latent_dist
            latents = posterior.sample(generator) if sample_posterior else posterior.mode()
            facts = {"latent_dist": posterior}
        reconstruction = self.decode(latents, class_labels=class_labels).sample
        if not return_dict:
            return (reconstruction,)
        return LatentAutoencoderOutput(sample=reconstruction, **facts)

    def indices_to_latents(self, indices: Sequence[Tensor]) -> Tensor:
        """Raw latents (B, C, h, w), of the model's dtype, of the indices that `encode` gives.

        Raises:
            ValueError: the model has no codes, or other codebooks.
        """
        bottleneck = self._discrete_bottleneck()
        expected = max(1, len(self.quantizers))
        if len(indices) != expected:
            raise ValueError(
                f"found {len(indices)} grids of indices, expected a tuple of {expected}: one for "
                "each codebook, coarse to fine"
            )
        latents: Tensor = bottleneck.indices_to_latents(indices)
        return latents.to(self.dtype)

    def latents_to_indices(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Indices of raw latents (B, C, h, w) that are codes; the inverse of `indices_to_latents`.

        Other latents get the index of a nearest code.

        Raises:
            ValueError: the model has no codes.
        """
        found: tuple[Tensor, ...] = self._discrete_bottleneck().latents_to_indices(latents)
        return found

    def _discrete_bottleneck(self) -> VectorBottleneck | ScalarBottleneck | TwoLevelBottleneck:
        if isinstance(self.bottleneck, GaussianBottleneck):
            raise ValueError(
                "found a gaussian bottleneck, whose latents have no indices; expected a model "
                "with bottleneck vq, fsq or vq2"
            )
        return self.bottleneck

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

    def _encode(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if not self.use_tiling:
            return self.encoder(x, labels)  # type: ignore[no-any-return]
        margin = self.encoder_margin // self.factor
        scales = {"in_scale": self.factor, "out_scale": 1}
        run = partial(self.encoder, class_labels=labels)
        return map_tiles(run, x, margin=margin, tile=self.tile_cells, **scales)

    def _decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        if not self.use_tiling:
            return self.decoder(z, labels)  # type: ignore[no-any-return]
        margin = self.decoder_margin // self.factor
        scales = {"in_scale": 1, "out_scale": self.factor}
        run = partial(self.decoder, class_labels=labels)
        return map_tiles(run, z, margin=margin, tile=self.tile_cells, **scales)

    def _sliced(
        self,
        run: Callable[[Tensor, Tensor | None], Tensor],
        x: Tensor,
        class_labels: Tensor | None,
    ) -> Tensor:
        labels = checked_labels(class_labels, self.config.num_classes, x)
        if not self.use_slicing or len(x) < 2:
            return run(x, labels)
        parts = [slice(i, i + 1) for i in range(len(x))]
        return torch.cat([run(x[i], None if labels is None else labels[i]) for i in parts])
