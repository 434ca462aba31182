"""Codec: images to latents to `.lc` bytes, and back.

Legend: N images, C latent channels, h w cells of the latent grid, f downscale. *Raw* latents are
what the network makes and what files hold; *scaled* ones, (raw - shift_factor) * scaling_factor,
are what a diffusion model wants and what this class takes and gives.
"""

import os
import warnings
from typing import Any, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec import backbone, catalog, quantizer
from codec.bitstream import ColorMode, Header, LatentFile
from codec.checkpoint import CODEC_FILE, ModelInfo, read_info
from codec.device import choose_device, choose_dtype
from codec.entropy import SymbolCoder
from codec.errors import LatentCodecError
from codec.identity import ENTROPY_FILE
from codec.images import Image, Source, load, pad, to_pil
from codec.latents import LatentsError, Scaling, image_batch, latent_batch
from codec.packing import FileSource, RawLatents, pack_raw, read_file, unpack_raw

# Lists and tuples of sources; `Sequence` would not tell them apart from one path.
Several = list[Any] | tuple[Any, ...]


class ImageWarning(UserWarning):
    """Something of an image could not be kept: its alpha, further frames, a broken profile."""


class MissingCoderError(LatentCodecError):
    """The model has no entropy tables, so it makes latents but no files."""


class Codec:
    """An autoencoder and its entropy coder behind one small interface.

    Attributes:
        autoencoder: The diffusers model, in evaluation mode; any pipeline takes it as its `vae`.
        info: What codec.json says, or None for a model without entropy tables.
        device: Where the model runs.
        dtype: What it computes in. Latents are float32 at the edges whatever it is.
        factor: f.
        latent_channels: C.
    """

    def __init__(
        self,
        autoencoder: Any,
        *,
        coder: SymbolCoder | None = None,
        info: ModelInfo | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Wraps a model that is at hand; `from_pretrained` is the usual way.

        Args:
            autoencoder: LatentAutoencoder, or diffusers' AutoencoderKL, AutoencoderTiny,
                AutoencoderDC or VQModel. It is moved to the device and dtype.
            coder: Entropy tables; with `info`, or neither.
            info: Ids and default quality that go with them.
            device: As for `from_pretrained`.
            dtype: As for `from_pretrained`.
        """
        assert (coder is None) == (info is None)
        self.device = choose_device(device)
        upcast = bool(autoencoder.config.get("force_upcast", False))
        self.dtype = choose_dtype(self.device, dtype, force_upcast=upcast)
        # Convolutions are faster with channels last, on CPUs and on tensor cores. diffusers' own
        # `to` warns of every dtype (0.42), so torch's is called.
        nn.Module.to(autoencoder, self.device, self.dtype)
        nn.Module.to(autoencoder, memory_format=torch.channels_last)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.info = info
        self.factor = backbone.downscale_factor(autoencoder)
        self._multiple: int = getattr(autoencoder, "multiple", self.factor)  # of image sides
        self.latent_channels: int = autoencoder.config["latent_channels"]
        self._scaling = Scaling.of(autoencoder.config)
        self._coder = coder
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
            coder = SymbolCoder.load(directory / ENTROPY_FILE)
        model = backbone.load_autoencoder(directory)
        return cls(model, coder=coder, info=info, device=device, dtype=dtype)

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
        return self.info.name if self.info else type(self.autoencoder).__name__

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

    @overload
    def compress(
        self,
        image: Source | Image,
        quality: float | None = None,
        step: float | None = None,
        strict: bool = False,
    ) -> bytes: ...
    @overload
    def compress(
        self,
        image: Several,
        quality: float | None = None,
        step: float | None = None,
        strict: bool = False,
    ) -> list[bytes]: ...
    @torch.no_grad()
    def compress(
        self,
        image: Source | Image | Several,
        quality: float | None = None,
        step: float | None = None,
        strict: bool = False,
    ) -> bytes | list[bytes]:
        """Compresses an image of any size to the bytes of an `.lc` file.

        A list gives a list; each image is coded by itself, so its bytes do not depend on its
        company.

        Args:
            image: See `codec.images.load`, or what that returned; or a list of such.
            quality: 1 to 100; the model's default when None. Higher is larger and closer.
            step: The quantiser step instead of a quality, in units of raw latents.
            strict: Refuse what cannot be kept (alpha, animation) instead of warning.

        Raises:
            MissingCoderError: The model has no entropy tables.
            QuantizerError: The quality or step is out of range.
            ImageError: The image cannot be read.
        """
        if isinstance(image, list | tuple):
            return [self.compress(one, quality, step, strict) for one in image]
        units = self._step_units(quality, step)
        loaded = image if isinstance(image, Image) else _load(image, strict)
        raw_latents = backbone.encode_pixels(self.autoencoder, pad(loaded.pixels, self._multiple))
        mode = ColorMode.GRAY if loaded.is_gray else ColorMode.RGB
        return self._pack(raw_latents, units, (loaded.width, loaded.height), mode)

    @overload
    def decompress(self, data: FileSource) -> PIL.Image.Image: ...
    @overload
    def decompress(self, data: Several) -> list[PIL.Image.Image]: ...
    def decompress(self, data: FileSource | Several) -> PIL.Image.Image | list[PIL.Image.Image]:
        """Decompresses an `.lc` file to a Pillow image (mode L for gray ones) of the first size.

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
        return to_pil(image.pixels, image.is_gray)

    @torch.no_grad()
    def reconstruct(self, data: FileSource | LatentFile) -> Image:
        """Decompresses to pixels, uint8 (H, W, 3); `decompress` shows the same ones.

        Args:
            data: As for `decompress`, or what `codec.packing.read_file` made of it.

        Raises:
            LatentCodecError: As for `decompress`.
        """
        file = data if isinstance(data, LatentFile) else read_file(data)
        header = file.header
        codec = self._codec_for(header)
        raw_latents = codec._unpack(file)
        pixels = backbone.decode_pixels(codec.autoencoder, raw_latents)
        cropped = np.ascontiguousarray(pixels[: header.height, : header.width])
        return Image(cropped, header.color_mode is ColorMode.GRAY)

    def pack(
        self, latents: Tensor, quality: float | None = None, step: float | None = None
    ) -> bytes:
        """Packs scaled latents into the bytes of an `.lc` file, without pixels.

        Args:
            latents: (C, h, w) or (1, C, h, w), any float dtype.
            quality: As for `compress`.
            step: As for `compress`.

        Returns:
            A file of an image of w * f by h * f pixels.

        Raises:
            LatentsError: The latents have another shape or dtype than this model's.
            LatentCodecError: As for `compress`.
        """
        units = self._step_units(quality, step)
        raw_latents = self._raw(latents)
        if len(raw_latents) != 1:
            raise LatentsError(
                f"found latents of {len(raw_latents)} images, expected those of one; pack each by "
                "itself"
            )
        rows, columns = raw_latents.shape[-2:]
        size = (columns * self.factor, rows * self.factor)
        return self._pack(raw_latents[0].cpu().numpy(), units, size, ColorMode.RGB)

    def unpack(self, data: FileSource) -> Tensor:
        """Unpacks an `.lc` file to scaled latents, float32 (1, C, h, w) on the codec's device.

        They are scaled as the model that made the file wants it, also when it is not this one.

        Raises:
            LatentCodecError: As for `decompress`.
        """
        file = read_file(data)
        codec = self._codec_for(file.header)
        return codec._scaling.scale(torch.from_numpy(codec._unpack(file))[None].to(self.device))

    def _raw(self, latents: Tensor) -> Tensor:
        """Returns scaled latents as raw ones, float32 (N, C, h, w) on the codec's device."""
        batch = latent_batch(latents, self.latent_channels)
        return self._scaling.unscale(batch.to(self.device, torch.float32))

    def _encode_tensor(self, images: Tensor) -> Tensor:
        x = image_batch(images)
        bottom, right = -x.shape[-2] % self._multiple, -x.shape[-1] % self._multiple
        x = functional.pad(x.to(self.device, self.dtype), (0, right, 0, bottom), mode="replicate")
        return self._scaling.scale(backbone.encode_raw(self.autoencoder, _channels_last(x)).float())

    def _encode_image(self, source: Source) -> Tensor:
        pixels = pad(_load(source, strict=False).pixels, self._multiple)
        raw_latents = backbone.encode_pixels(self.autoencoder, pixels)
        return self._scaling.scale(torch.from_numpy(raw_latents)[None].to(self.device))

    def _step_units(self, quality: float | None, step: float | None) -> int:
        if self.info is None:
            raise MissingCoderError(
                f"found a model without {ENTROPY_FILE} and {CODEC_FILE} ({self.name}), so it makes "
                "latents but no files; expected a codec's model directory, as "
                "'latent-codec-train export' writes it"
            )
        if step is None:
            chosen = self.info.default_quality if quality is None else quality
            return quantizer.step_from_quality(chosen, self.info.quality_50_step)
        if quality is not None:
            raise quantizer.QuantizerError("found both a quality and a step, expected one of them")
        return quantizer.step_from_size(step)

    def _pack(
        self, raw_latents: RawLatents, step: int, size: tuple[int, int], mode: ColorMode
    ) -> bytes:
        assert self.info is not None
        assert self._coder is not None
        return pack_raw(
            raw_latents, info=self.info, coder=self._coder, step=step, size=size, color_mode=mode
        )

    def _unpack(self, file: LatentFile) -> RawLatents:
        assert self._coder is not None
        return unpack_raw(
            file, coder=self._coder, latent_channels=self.latent_channels, factor=self.factor
        )

    def _codec_for(self, header: Header) -> "Codec":
        """Returns the codec that may decode the file: this one, or one that is at hand."""
        if self.info is not None and self.info.decodes(header.latent_id, header.coder_id):
            return self
        ids = (header.latent_id, header.coder_id)
        if ids not in self._others:
            self._others[ids] = Codec.for_header(header, device=self.device, dtype=self.dtype)
        return self._others[ids]


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _load(source: Source, strict: bool) -> Image:
    image = load(source, strict=strict)
    for sentence in image.warnings:
        warnings.warn(sentence, ImageWarning, stacklevel=4)
    return image
