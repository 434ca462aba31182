"""Codec: images to `.lc` bytes and back, and latents to bytes; see `LatentModel` for the rest.

Legend: N images, C latent channels, h w cells of the latent grid, f downscale. *Raw* latents are
what the network makes and what files hold; *scaled* ones, (raw - shift_factor) * scaling_factor,
are what a diffusion model wants and what this class takes and gives.
"""

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from codec import backbone, catalog
from codec.alpha import encode_alpha, fill_transparent, read_alpha
from codec.bitstream import ColorMode, Header, LatentFile
from codec.checkpoint import CODEC_FILE, ModelInfo, read_info
from codec.codes import Codes, codes_of
from codec.device import choose_device
from codec.identity import ENTROPY_FILE
from codec.images import AlphaMode, Image, Source, flatten, pad, to_picture
from codec.latent_model import ImageWarning, LatentModel, Several, load_source
from codec.latents import LatentsError
from codec.metadata import read_metadata
from codec.packer import AnyCoder, MissingCoderError, Packer, load_any_coder
from codec.packing import FileSource, read_file
from codec.rate_control import Wish

__all__ = ["Codec", "ImageWarning", "MissingCoderError", "Several"]


class Codec(LatentModel):
    """An autoencoder and its entropy coder behind one small interface.

    Attributes:
        autoencoder: The diffusers model, in evaluation mode; any pipeline takes it as its `vae`.
        device: Where the model runs.
        dtype: What it computes in. Latents are float32 at the edges whatever it is.
        factor: f.
        latent_channels: C.
    """

    def __init__(
        self,
        autoencoder: Any,
        *,
        coder: AnyCoder | None = None,
        info: ModelInfo | None = None,
        directory: Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Wraps a model that is at hand; `from_pretrained` is the usual way.

        Args:
            autoencoder: LatentAutoencoder, or diffusers' AutoencoderKL, AutoencoderTiny,
                AutoencoderDC or VQModel. It is moved to the device and dtype.
            coder: Entropy tables; with `info`, or neither.
            info: Ids and default quality that go with them.
            directory: Where a model without `info` lies; its files bring their own tables. Without
                it the model makes no files.
            device: As for `from_pretrained`.
            dtype: As for `from_pretrained`.
        """
        assert (coder is None) == (info is None)
        codes = codes_of(autoencoder)  # before they are cast
        super().__init__(autoencoder, device=device, dtype=dtype)
        self._coder = coder
        self._packer = Packer(
            class_name=type(autoencoder).__name__,
            stated=info,
            directory=directory,
            coder=coder,
            codes=codes,
            latent_channels=self.latent_channels,
            factor=self.factor,
            multiple=self.multiple,
        )
        self._others: dict[tuple[str, str], Codec] = {}  # for files of other models, by ids

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "Codec":
        """Loads a model; the embedded ones need no network.

        Args:
            name_or_dir: An embedded name (`latent-codec models` lists them), a model directory, or
                the directory or hub id of any of the autoencoders above or of a pipeline that has
                one as its `vae`. None for the default. Only safetensors are read.
            device: Where to run; None for CUDA where there is one, else the CPU.
            dtype: What to compute in; None for bfloat16 where the processor has units for it, else
                float32.

        Raises:
            UnknownModelError: No model has that name.
            ModelError: The model is incomplete, damaged, or not what its ids say.
            DeviceError: The device or dtype is unknown or not there.
        """
        device, directory = choose_device(device), catalog.model_directory(name_or_dir)
        coder, info = None, None
        if (directory / CODEC_FILE).is_file():
            info = read_info(directory)
            info.verify()
            coder = load_any_coder(directory / ENTROPY_FILE)
        model = backbone.load_autoencoder(directory)
        return cls(model, coder=coder, info=info, directory=directory, device=device, dtype=dtype)

    @classmethod
    def for_header(
        cls,
        header: Header,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "Codec":
        """Loads a model at hand that may decode the file with this header; see `catalog`.

        Raises:
            UnknownModelError: There is none.
            LatentCodecError: As for `from_pretrained`.
        """
        directory = catalog.find_model(header.latent_id, header.coder_id).directory
        return cls.from_pretrained(directory, device=device, dtype=dtype)

    @property
    def name(self) -> str:
        """The model's name for people."""
        return self._packer.stated.name if self._packer.stated else self._packer.class_name

    @property
    def info(self) -> ModelInfo | None:
        """Ids and default quality.

        They stand in codec.json, or are computed from the weights when they are first asked for;
        None for a model that was handed over without a directory, which makes no files.
        """
        return self._packer.info

    @property
    def coder(self) -> AnyCoder | None:
        """The entropy coder; None for a model whose tables travel in the files."""
        return self._packer.coder

    @property
    def codes(self) -> Codes | None:
        """The codebooks, in float32 whatever the model computes in; None for continuous latents."""
        return self._packer.codes

    @overload
    def compress(
        self,
        image: Source | Image,
        quality: float | None = None,
        step: float | None = None,
        strict: bool = False,
        *,
        target_bytes: int | None = None,
        target_bpp: float | None = None,
        alpha: AlphaMode = "composite",
        keep_metadata: bool = False,
    ) -> bytes: ...
    @overload
    def compress(
        self,
        image: Several,
        quality: float | None = None,
        step: float | None = None,
        strict: bool = False,
        *,
        target_bytes: int | None = None,
        target_bpp: float | None = None,
        alpha: AlphaMode = "composite",
        keep_metadata: bool = False,
    ) -> list[bytes]: ...
    @torch.no_grad()
    def compress(
        self,
        image: Source | Image | Several,
        quality: float | None = None,
        step: float | None = None,
        strict: bool = False,
        *,
        target_bytes: int | None = None,
        target_bpp: float | None = None,
        alpha: AlphaMode = "composite",
        keep_metadata: bool = False,
    ) -> bytes | list[bytes]:
        """Compresses an image of any size to the bytes of an `.lc` file.

        A list gives a list; each image is coded by itself, so its bytes do not depend on its
        company.

        Args:
            image: See `codec.images.load`, or what that returned; or a list of such.
            quality: 1 to 100; the model's default when None. Higher is larger and closer. Models
                of codes have none.
            step: The quantiser step instead of a quality, in units of raw latents, or for an
                autoencoder whose channels have steps of their own in units of their deviations.
            target_bytes: Take the highest quality, to a tenth, whose whole file is no larger.
            target_bpp: Likewise, in bits per pixel.
            strict: Refuse what cannot be kept (alpha, animation, metadata) instead of warning.
            alpha: "composite" over white, or "keep" 8 bits of it without loss.
            keep_metadata: Keep EXIF (with the orientation reset), text, and the colour profile for
                information: pixels are sRGB.

        Raises:
            MissingCoderError: The model was handed over without a directory.
            QuantizerError: The quality or step is out of range, or the model has codes.
            RateError: No file is as small as the target, or two wishes were given.
            ImageError: The image cannot be read.
        """
        if isinstance(image, list | tuple):
            one = partial(
                self.compress,
                quality=quality,
                step=step,
                strict=strict,
                target_bytes=target_bytes,
                target_bpp=target_bpp,
                alpha=alpha,
                keep_metadata=keep_metadata,
            )
            return [one(part) for part in image]
        packer, wish = self._packer, Wish(quality, step, target_bytes, target_bpp)
        packer.check(wish)
        loaded = (
            image if isinstance(image, Image) else load_source(image, strict, alpha, keep_metadata)
        )
        if alpha == "composite" and loaded.alpha is not None:
            loaded = flatten(loaded)
            warnings.warn(loaded.warnings[-1], ImageWarning, stacklevel=3)
        chunks = loaded.metadata.chunks() if keep_metadata and loaded.metadata else ()
        pixels = loaded.pixels
        if loaded.alpha is not None:
            chunks += (encode_alpha(loaded.alpha),)
            pixels = fill_transparent(pixels, loaded.alpha)
        pixels, size = pad(pixels, self.multiple), (loaded.width, loaded.height)
        mode = ColorMode.GRAY if loaded.is_gray else ColorMode.RGB
        if packer.codes is not None:
            indices = backbone.encode_indices(self.autoencoder, packer.codes, pixels)
            return packer.pack_indices(indices, size, mode, chunks)
        raw_latents = backbone.encode_pixels(self.autoencoder, pixels)
        return packer.pack_wish(raw_latents, wish, size, mode, chunks)

    @overload
    def decompress(self, data: FileSource) -> PIL.Image.Image: ...
    @overload
    def decompress(self, data: Several) -> list[PIL.Image.Image]: ...
    def decompress(self, data: FileSource | Several) -> PIL.Image.Image | list[PIL.Image.Image]:
        """Decompresses an `.lc` file to a Pillow image of the first size.

        Its mode is RGB, or L for gray pictures, with alpha RGBA or LA. Metadata are in its `info`;
        see `codec.images.to_picture`.

        Args:
            data: The file's bytes, its path or a binary file object; or a list of such.

        Raises:
            BitstreamError: The file is not one, or damaged; see `codec.bitstream`.
            UnknownModelError: It needs a model that is neither this one, nor embedded, nor in the
                folders of LATENT_CODEC_MODELS.
            SymbolMismatchError: Its payload decodes to other symbols than were coded.
        """
        if isinstance(data, list | tuple):
            return [self.decompress(one) for one in data]
        image = self.reconstruct(data)
        for sentence in image.warnings:
            warnings.warn(sentence, ImageWarning, stacklevel=2)
        return to_picture(image)

    @torch.no_grad()
    def reconstruct(self, data: FileSource | LatentFile) -> Image:
        """Decompresses to pixels, uint8 (H, W, 3), alpha and metadata, as `decompress` shows them.

        Args:
            data: As for `decompress`, or what `codec.packing.read_file` made of it.

        Raises:
            LatentCodecError: As for `decompress`.
        """
        file = data if isinstance(data, LatentFile) else read_file(data)
        header = file.header
        codec = self._codec_for(header)
        raw_latents = codec._packer.unpack(file)
        alpha = read_alpha(file.chunks, header.width, header.height)
        metadata, notes = read_metadata(file.chunks, "the file")
        pixels = backbone.decode_pixels(codec.autoencoder, raw_latents)
        cropped = np.ascontiguousarray(pixels[: header.height, : header.width])
        return Image(cropped, header.color_mode is ColorMode.GRAY, notes, alpha, metadata)

    def pack(
        self,
        latents: Tensor,
        quality: float | None = None,
        step: float | None = None,
        *,
        target_bytes: int | None = None,
        target_bpp: float | None = None,
    ) -> bytes:
        """Packs scaled latents into the bytes of an `.lc` file, without pixels.

        Args:
            latents: (C, h, w) or (1, C, h, w), any float dtype.
            quality: As for `compress`.
            step: As for `compress`.
            target_bytes: As for `compress`.
            target_bpp: As for `compress`.

        Returns:
            A file of an image of w * f by h * f pixels.

        Raises:
            LatentsError: The latents have another shape or dtype than this model's.
            LatentCodecError: As for `compress`.
        """
        wish = Wish(quality, step, target_bytes, target_bpp)
        self._packer.check(wish)
        raw_latents = self._raw(latents)
        if len(raw_latents) != 1:
            raise LatentsError(
                f"found latents of {len(raw_latents)} images, expected those of one; pack each by "
                "itself"
            )
        rows, columns = raw_latents.shape[-2:]
        size = (columns * self.factor, rows * self.factor)
        return self._packer.pack_wish(raw_latents[0].cpu().numpy(), wish, size)

    def unpack(self, data: FileSource) -> Tensor:
        """Unpacks an `.lc` file to scaled latents, float32 (1, C, h, w) on the codec's device.

        They are scaled as the model that made the file wants it, also when it is not this one.

        Raises:
            LatentCodecError: As for `decompress`.
        """
        file = read_file(data)
        codec = self._codec_for(file.header)
        raw_latents = torch.from_numpy(codec._packer.unpack(file))[None]
        return codec._scaling.scale(raw_latents.to(self.device))

    def _codec_for(self, header: Header) -> "Codec":
        """Returns the codec that may decode the file: this one, or one that is at hand."""
        if self._packer.decodes(header):
            return self
        ids = (header.latent_id, header.coder_id)
        if ids not in self._others:
            directory = catalog.find_model(*ids, given=self.info).directory
            other = Codec.from_pretrained(directory, device=self.device, dtype=self.dtype)
            self._others[ids] = other
        return self._others[ids]
