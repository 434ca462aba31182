"""The autoencoder whose latents are coded: it encodes as for files, and nothing of it changes.

Legend: C latent channels, h w cells of the latent grid, f downscale.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from codec import Codec, backbone, images
from codec.architectures import codebook_sizes
from codec.catalog import model_directory
from codec.checkpoint import CODEC_FILE, ModelInfo
from codec.entropy import LatentCoder
from codec.entropy.channel_coder import ChannelCoder
from codec.entropy.context import MAX_CHANNELS
from codec.errors import LatentCodecError
from codec.identity import ENTROPY_FILE
from codec.packer import load_any_coder
from codec.packing import IndicesCoder

Latents = NDArray[np.float32]  # (C, h, w)
Encoded = NDArray[np.float32] | NDArray[np.int32]


class FrozenCodecError(LatentCodecError):
    """An autoencoder whose latents no context model can code."""


@dataclass(frozen=True)
class Frozen(ABC):
    """An autoencoder that stays as it is.

    Attributes:
        codec: with the device and dtype that it makes files in.
        directory: where it lies.
        info: what codec.json says, or the weights themselves where there is none.
    """

    codec: Codec
    directory: Path
    info: ModelInfo

    @property
    def factor(self) -> int:
        """f."""
        return self.codec.factor

    @property
    def has_coder(self) -> bool:
        """Whether its files need not bring their own tables."""
        return (self.directory / CODEC_FILE).is_file()

    @abstractmethod
    def encode(self, pixels: images.Pixels) -> Encoded:
        """What is coded of an image uint8 (H, W, 3): an array (planes, h, w)."""

    def padded(self, pixels: images.Pixels) -> images.Pixels:
        """An image with sides that the network takes."""
        return images.pad(pixels, self.codec.multiple)


@dataclass(frozen=True)
class FrozenCodec(Frozen):
    """An autoencoder with continuous latents."""

    @property
    def num_channels(self) -> int:
        """C."""
        return self.codec.latent_channels

    @torch.no_grad()
    def encode(self, pixels: images.Pixels) -> Latents:
        """Raw latents of an image uint8 (H, W, 3), before they are rounded for a file.

        Raises:
            FrozenCodecError: they are not finite.
        """
        latents = backbone.encode_pixels(self.codec.autoencoder, self.padded(pixels))
        if not np.isfinite(latents).all():
            raise FrozenCodecError(
                f"found latents of {self.info.name} that are not finite, expected finite ones: "
                "use another autoencoder, or a machine on which it does not overflow"
            )
        return latents

    def one_step_coder(self) -> LatentCoder | None:
        """The codec's present coder, if it has one for a single step of all channels."""
        if not self.has_coder:
            return None
        coder = load_any_coder(self.directory / ENTROPY_FILE)
        assert not isinstance(coder, IndicesCoder)  # latents are continuous
        return None if isinstance(coder, ChannelCoder) else coder

    def quality_50_step(self, deviations: Sequence[float]) -> float:
        """Quantiser step of quality 50 in raw latent units, one for all channels.

        The codec's own. Where its channels have a step each, the same multiple of their root mean
        square deviation.
        """
        step = self.info.quality_50_step
        assert step is not None  # latents are continuous
        if self.one_step_coder() is not None:
            return step
        return step * math.sqrt(float(np.mean(np.square(deviations))))


def open_codec(name: str, device: torch.device | None = None) -> FrozenCodec:
    """Load the autoencoder that `entropy.codec` names.

    Raises:
        FrozenCodecError: its latents are codes, or have too many channels.
        LatentCodecError: there is no such model, or it is damaged.
    """
    directory = model_directory(name)
    codec = Codec.from_pretrained(directory, device=device)
    info = codec.info
    assert info is not None  # it has a directory
    if codebook_sizes(codec.autoencoder.config):
        raise FrozenCodecError(
            f"found codes in entropy.codec {name}, expected an autoencoder with continuous "
            "latents; a model of codes is trained by configs/entropy/indices-vq-f8.yaml"
        )
    if codec.latent_channels > MAX_CHANNELS:
        raise FrozenCodecError(
            f"found {codec.latent_channels} latent channels in entropy.codec {name}, expected at "
            f"most {MAX_CHANNELS}"
        )
    return FrozenCodec(codec, directory, info)
