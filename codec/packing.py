"""Raw latents or indices to the bytes of an `.lc` file and back: quantise, code, wrap.

No network is involved: whoever has latents, from pixels or from a diffusion model, packs them here.
Legend: C latent channels, h w cells of the latent grid, f downscale.
"""

import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from codec import bitstream, quantizer
from codec.bitstream import (
    ChannelSteps,
    Chunk,
    CodeIndices,
    ColorMode,
    Grid,
    Header,
    InvalidHeaderError,
    LatentFile,
    OneStep,
    Quantizer,
)
from codec.checkpoint import ModelInfo
from codec.entropy import LatentCoder
from codec.entropy.channel_coder import ChannelCoder
from codec.entropy.file_tables import FileTables
from codec.entropy.fit_file_tables import fit_file_tables
from codec.entropy.index_tables import Indices, decode_indices, encode_indices
from codec.errors import LatentCodecError
from codec.images import MAX_PIXELS

FileSource = bytes | str | os.PathLike[str] | BinaryIO
RawLatents = NDArray[np.float32]  # (C, h, w)


class SymbolMismatchError(LatentCodecError):
    """The payload decoded to other symbols than its writer coded."""


@runtime_checkable
class IndicesCoder(Protocol):
    """What codes the indices of codes by tables of its own."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each codebook, coarse to fine."""
        ...

    def encode(self, indices: Indices) -> bytes:
        """Return the payload of int32 (rows, columns) indices of each codebook."""
        ...

    def decode(self, payload: bytes, shapes: Sequence[tuple[int, int]]) -> Indices:
        """Return the indices of a payload."""
        ...


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
    coder: LatentCoder | ChannelCoder | None,
    step: int,
    size: tuple[int, int],
    trade: float = 0.0,
    color_mode: ColorMode = ColorMode.RGB,
    chunks: Sequence[Chunk] = (),
) -> bytes:
    """Quantises and codes the raw latents of one image.

    Args:
        raw_latents: float32 (C, h, w).
        info: The model's ids and name.
        coder: The model's entropy coder; None for tables that travel in the file.
        step: Quantiser step in units of 2**-16: of raw latents, or without a coder and with a
            ChannelCoder of each channel's deviation.
        size: (width, height) of the image in pixels.
        trade: Squared error, in squares of the step, that a bit may cost; 0 rounds. Tables that
            know no context always round.
        color_mode: Whether the image was gray.
        chunks: Optional chunks of the file.

    Raises:
        QuantizerError: The latents are not finite, or too large for the step.
        BitstreamError: A size is beyond what the format holds.
    """
    if coder is not None and not isinstance(coder, ChannelCoder):
        (data,) = pack_together(
            [raw_latents],
            info=info,
            coder=coder,
            step=step,
            sizes=[size],
            trade=trade,
            color_mode=color_mode,
            chunks=chunks,
        )
        return data
    tables = None
    measured = coder.deviations if coder else quantizer.measure_deviations([raw_latents])
    steps = quantizer.channel_steps(step, measured)
    symbols = quantizer.quantize(raw_latents, steps)
    how = ChannelSteps(symbols.shape, steps)
    if coder is not None:
        payload = coder.encode(symbols, steps)
    else:
        fitted = fit_file_tables(symbols)
        tables, payload = fitted.to_bytes(), fitted.encode(symbols)
    header = _header(info, how, quantizer.symbols_crc32(symbols), size, color_mode)
    return bitstream.dumps(LatentFile(header, payload, tuple(chunks), tables))


def pack_together(
    raw_latents: Sequence[RawLatents],
    *,
    info: ModelInfo,
    coder: LatentCoder,
    step: int,
    sizes: Sequence[tuple[int, int]],
    trade: float = 0.0,
    color_mode: ColorMode = ColorMode.RGB,
    chunks: Sequence[Chunk] = (),
) -> list[bytes]:
    """Quantises and codes the raw latents of several images of one shape.

    Each file is the one that `pack_raw` makes of its image; coding them together is faster where
    images are small. Arguments, one latent and size an image, and errors are `pack_raw`'s.
    """
    images = [choose_symbols(one, coder, step, trade) for one in raw_latents]
    return pack_symbols(
        images,
        info=info,
        coder=coder,
        step=step,
        sizes=sizes,
        color_mode=color_mode,
        chunks=chunks,
    )


def choose_symbols(
    raw_latents: RawLatents, coder: LatentCoder, step: int, trade: float
) -> NDArray[np.int32]:
    """Returns the symbols (C, h, w) that stand for raw latents; arguments are `pack_raw`'s."""
    symbols = quantizer.quantize(raw_latents, step)
    if trade:
        symbols = coder.quantize(quantizer.in_steps(raw_latents, step), step, trade)
    return symbols


def pack_symbols(
    images: Sequence[NDArray[np.int32]],
    *,
    info: ModelInfo,
    coder: LatentCoder,
    step: int,
    sizes: Sequence[tuple[int, int]],
    color_mode: ColorMode = ColorMode.RGB,
    chunks: Sequence[Chunk] = (),
) -> list[bytes]:
    """Codes the symbols (C, h, w) of several images of one shape; see `pack_together`."""
    files = []
    for symbols, payload, size in zip(images, coder.encode_batch(images, step), sizes, strict=True):
        how = OneStep(symbols.shape, step)
        header = _header(info, how, quantizer.symbols_crc32(symbols), size, color_mode)
        files.append(bitstream.dumps(LatentFile(header, payload, tuple(chunks))))
    return files


def pack_indices(
    indices: Indices,
    *,
    info: ModelInfo,
    coder: IndicesCoder | None,
    grids: tuple[Grid, ...],
    size: tuple[int, int],
    color_mode: ColorMode = ColorMode.RGB,
    chunks: Sequence[Chunk] = (),
) -> bytes:
    """Codes the indices of one image.

    Args:
        indices: int32 (rows, columns) of each codebook, coarse to fine.
        info: The model's ids and name.
        coder: The model's entropy coder; None for tables that travel in the file.
        grids: Sizes of codebooks and indices.
        size: As for `pack_raw`.
        color_mode: As for `pack_raw`.
        chunks: As for `pack_raw`.

    Raises:
        BitstreamError: A size is beyond what the format holds.
    """
    tables = None
    if coder is None:
        tables, payload = encode_indices(indices, [grid.num_codes for grid in grids])
    else:
        payload = coder.encode(indices)
    crc32 = quantizer.symbols_crc32(*indices)
    header = _header(info, CodeIndices(grids), crc32, size, color_mode)
    return bitstream.dumps(LatentFile(header, payload, tuple(chunks), tables))


def unpack_raw(
    file: LatentFile,
    *,
    coder: LatentCoder | ChannelCoder | None,
    latent_channels: int,
    factor: int,
) -> RawLatents:
    """Decodes the raw latents (C, h, w) of a file, exactly those that its writer quantised to.

    Args:
        file: What `read_file` returned.
        coder: The coder with the file's coder id; not asked where tables are in the file.
        latent_channels: The model's C.
        factor: The model's f.

    Raises:
        InvalidHeaderError: The header's sizes do not fit together or to the model.
        InvalidTablesError: The tables in the file are malformed.
        PayloadError: The payload is no code of the claimed symbols.
        SymbolMismatchError: It decodes to other symbols than were coded.
    """
    header, how = file.header, file.header.quantizer
    shape = (latent_channels, -(-header.height // factor), -(-header.width // factor))
    if isinstance(how, CodeIndices) or how.shape != shape:
        raise _misfit(header, f"latents of shape {shape}")
    _check_pixels(header)
    if file.tables is not None:
        symbols = FileTables.from_bytes(file.tables, latent_channels).decode(file.payload, shape)
    elif isinstance(coder, ChannelCoder) and isinstance(how, ChannelSteps):
        symbols = coder.decode(file.payload, shape, how.steps)
    elif isinstance(how, OneStep) and not isinstance(coder, ChannelCoder):
        assert coder is not None  # or its id would not be the file's
        symbols = coder.decode(file.payload, shape, how.step)
    else:
        raise _misfit(header, "steps as the model's coder takes them")
    _check_symbols(header, symbols)
    return quantizer.dequantize(symbols, how.step if isinstance(how, OneStep) else how.steps)


def unpack_indices(
    file: LatentFile, *, coder: IndicesCoder | None, grids: tuple[Grid, ...]
) -> Indices:
    """Decodes the indices of a file.

    Args:
        file: What `read_file` returned.
        coder: As for `unpack_raw`.
        grids: What the model makes of an image of the file's size.

    Raises:
        LatentCodecError: As for `unpack_raw`.
    """
    header = file.header
    if header.quantizer != CodeIndices(grids):
        raise _misfit(header, " and ".join(f"{g.columns}x{g.rows} indices" for g in grids))
    _check_pixels(header)
    sizes, shapes = [g.num_codes for g in grids], [(g.rows, g.columns) for g in grids]
    if file.tables is not None:
        indices = decode_indices(file.tables, file.payload, sizes, shapes)
    else:
        assert coder is not None  # or its id would not be the file's
        indices = coder.decode(file.payload, shapes)
    _check_symbols(header, *indices)
    return indices


def _header(
    info: ModelInfo, how: Quantizer, crc32: int, size: tuple[int, int], color_mode: ColorMode
) -> Header:
    return Header(
        latent_id=info.latent_id,
        coder_id=info.coder_id,
        decoder_id=info.decoder_id,
        width=size[0],
        height=size[1],
        color_mode=color_mode,
        quantizer=how,
        symbols_crc32=crc32,
        name=info.name,
    )


def _check_pixels(header: Header) -> None:
    if header.width * header.height > MAX_PIXELS:
        raise InvalidHeaderError(
            f"found an image of {header.width}x{header.height}, expected at most {MAX_PIXELS:,} "
            "pixels; no picture of that size is decoded"
        )


def _check_symbols(header: Header, *symbols: NDArray[np.int32]) -> None:
    if quantizer.symbols_crc32(*symbols) != header.symbols_crc32:
        raise SymbolMismatchError(
            "found other symbols in the payload than the header's checksum says; the file is "
            "damaged, or its writer or this reader does not follow the format"
        )


def _misfit(header: Header, expected: str) -> InvalidHeaderError:
    match header.quantizer:
        case CodeIndices(grids):
            found = " and ".join(f"{grid.columns}x{grid.rows} indices" for grid in grids)
        case OneStep(shape) | ChannelSteps(shape):
            found = f"latents of shape {shape}"
    return InvalidHeaderError(
        f"found {found} for an image of {header.width}x{header.height}, expected {expected}; the "
        "file was not made by the model that it names"
    )
