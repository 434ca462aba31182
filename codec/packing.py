"""Raw latents to the bytes of an `.lc` file and back: quantise, code, wrap.

No network is involved: whoever has latents, from pixels or from a diffusion model, packs them here.
Legend: C latent channels, h w cells of the latent grid, f downscale.
"""

import os
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from codec import bitstream, quantizer
from codec.bitstream import ColorMode, Header, InvalidHeaderError, LatentFile
from codec.checkpoint import ModelInfo
from codec.entropy import SymbolCoder
from codec.errors import LatentCodecError
from codec.images import MAX_PIXELS

FileSource = bytes | str | os.PathLike[str] | BinaryIO
RawLatents = NDArray[np.float32]  # (C, h, w)


class SymbolMismatchError(LatentCodecError):
    """The payload decoded to other symbols than its writer coded."""


def read_file(source: FileSource) -> LatentFile:
    """Reads an `.lc` file from its bytes, its path or a binary file object.

    Raises:
        BitstreamError: It is none, or damaged.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bitstream.loads(bytes(source))
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as stream:
            return bitstream.read(stream)
    return bitstream.read(source)


def pack_raw(
    raw_latents: RawLatents,
    *,
    info: ModelInfo,
    coder: SymbolCoder,
    step: int,
    size: tuple[int, int],
    color_mode: ColorMode = ColorMode.RGB,
) -> bytes:
    """Quantises and codes the raw latents of one image.

    Args:
        raw_latents: float32 (C, h, w).
        info: The model's ids and name.
        coder: The model's entropy coder.
        step: Quantiser step in units of 2**-16.
        size: (width, height) of the image in pixels.
        color_mode: Whether the image was gray.

    Raises:
        QuantizerError: The latents are not finite, or too large for the step.
        BitstreamError: A size is beyond what the format holds.
    """
    symbols = quantizer.quantize(raw_latents, step)
    channels, rows, columns = symbols.shape
    header = Header(
        latent_id=info.latent_id,
        coder_id=info.coder_id,
        decoder_id=info.decoder_id,
        width=size[0],
        height=size[1],
        color_mode=color_mode,
        latent_shape=(channels, rows, columns),
        step=step,
        symbols_crc32=quantizer.symbols_crc32(symbols),
        name=info.name,
    )
    return bitstream.dumps(LatentFile(header, coder.encode(symbols, step)))


def unpack_raw(
    file: LatentFile, *, coder: SymbolCoder, latent_channels: int, factor: int
) -> RawLatents:
    """Decodes the raw latents (C, h, w) of a file, exactly those that its writer quantised to.

    Args:
        file: What `read_file` returned.
        coder: The coder with the file's coder id.
        latent_channels: The model's C.
        factor: The model's f.

    Raises:
        InvalidHeaderError: The header's sizes do not fit together or to the model.
        PayloadError: The payload is no code of the claimed symbols.
        SymbolMismatchError: It decodes to other symbols than were coded.
    """
    header = file.header
    expected = (latent_channels, -(-header.height // factor), -(-header.width // factor))
    if header.latent_shape != expected or header.width * header.height > MAX_PIXELS:
        raise InvalidHeaderError(
            f"found latents of shape {header.latent_shape} for an image of {header.width}x"
            f"{header.height}, expected {expected} and at most {MAX_PIXELS:,} pixels; the file was "
            "not made by the model that it names"
        )
    symbols = coder.decode(file.payload, header.latent_shape, header.step)
    if quantizer.symbols_crc32(symbols) != header.symbols_crc32:
        raise SymbolMismatchError(
            "found other symbols in the payload than the header's checksum says; the file is "
            "damaged, or its writer or this reader does not follow the format"
        )
    return quantizer.dequantize(symbols, header.step)
