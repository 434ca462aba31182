"""The symbols inside an `.lc` file, with what codes them.

Legend: C latent channels, h w cells of the latent grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from codec import quantizer
from codec.bitstream import CodeIndices, Grid, LatentFile, OneStep
from codec.entropy.channel_coder import ChannelCoder
from codec.entropy.file_tables import FileTables
from codec.entropy.fit_file_tables import fit_file_tables
from codec.entropy.index_tables import Indices, decode_indices, encode_indices
from codec.packing import IndicesCoder, read_file
from codec.pipeline import Codec

Planes = Sequence[NDArray[np.int32]]


@dataclass(frozen=True, slots=True, eq=False)
class CodedFile:
    """One file, taken apart.

    Attributes:
        planes: int32 symbols of each channel (h, w), or indices of each codebook, coarse to fine.
        file_bytes: the whole file.
        coded_bytes: what the symbols take: the payload, and tables where they travel in the file.
        estimate_bits: the model's ideal code length of the same; None where a coder has none.
        encode: codes the symbols again; returns as many bytes as `coded_bytes`.
        decode: gives the symbols again.
    """

    planes: Planes
    file_bytes: int
    coded_bytes: int
    estimate_bits: float | None
    encode: Callable[[], bytes]
    decode: Callable[[], Planes]

    @property
    def num_symbols(self) -> int:
        """Of all planes."""
        return sum(plane.size for plane in self.planes)


@runtime_checkable
class _Estimating(Protocol):
    """A coder of indices that knows their ideal code length."""

    def estimate_bits(self, indices: Indices) -> float: ...


def open_coded(codec: Codec, data: bytes) -> CodedFile:
    """Take a file apart that `codec` made.

    Raises:
        LatentCodecError: it is damaged, or another model's.
    """
    file = read_file(data)
    coding = _coding(codec, file)
    planes = coding.decode()
    # Or another model's coder would have been asked.
    assert quantizer.symbols_crc32(*planes) == file.header.symbols_crc32
    return CodedFile(
        planes=planes,
        file_bytes=len(data),
        coded_bytes=len(file.payload) + len(file.tables or b""),
        estimate_bits=coding.estimate(planes),
        encode=lambda: coding.encode(planes),
        decode=coding.decode,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Coding:
    """What decodes, encodes and estimates the symbols of one file."""

    decode: Callable[[], Planes]
    encode: Callable[[Planes], bytes]
    estimate: Callable[[Planes], float | None]


def _coding(codec: Codec, file: LatentFile) -> _Coding:
    how, coder = file.header.quantizer, codec.coder
    if isinstance(how, CodeIndices):
        assert coder is None or isinstance(coder, IndicesCoder)
        return _of_indices(file, coder, how.grids)
    if file.tables is not None:
        return _of_tables(file.payload, file.tables, how.shape)
    if isinstance(how, OneStep):
        assert coder is not None
        assert not isinstance(coder, ChannelCoder | IndicesCoder)
        return _of_latents(file.payload, coder, how.shape, how.step)
    assert isinstance(coder, ChannelCoder)
    return _of_latents(file.payload, coder, how.shape, how.steps)


def _of_indices(file: LatentFile, coder: IndicesCoder | None, grids: Sequence[Grid]) -> _Coding:
    payload, tables = file.payload, file.tables
    sizes, shapes = [g.num_codes for g in grids], [(g.rows, g.columns) for g in grids]
    if tables is not None:
        return _Coding(
            decode=lambda: decode_indices(tables, payload, sizes, shapes),
            encode=lambda planes: b"".join(encode_indices(tuple(planes), sizes)),
            estimate=lambda planes: None,
        )
    assert coder is not None  # or the tables would be in the file
    return _Coding(
        decode=lambda: coder.decode(payload, shapes),
        encode=lambda planes: coder.encode(tuple(planes)),
        estimate=lambda planes: (
            coder.estimate_bits(tuple(planes)) if isinstance(coder, _Estimating) else None
        ),
    )


def _of_tables(payload: bytes, tables: bytes, shape: tuple[int, int, int]) -> _Coding:
    return _Coding(
        decode=lambda: list(FileTables.from_bytes(tables, shape[0]).decode(payload, shape)),
        encode=lambda planes: _encode_with_tables(np.stack(planes)),
        estimate=lambda planes: _estimate_with_tables(tables, np.stack(planes)),
    )


def _of_latents(
    payload: bytes, coder: Any, shape: tuple[int, int, int], step: int | tuple[int, ...]
) -> _Coding:
    """Of a LatentCoder and its step, or a ChannelCoder and a step a channel."""
    return _Coding(
        decode=lambda: list(coder.decode(payload, shape, step)),
        encode=lambda planes: coder.encode(np.stack(planes), step),
        estimate=lambda planes: coder.estimate_bits(np.stack(planes), step),
    )


def _encode_with_tables(symbols: NDArray[np.int32]) -> bytes:
    fitted = fit_file_tables(symbols)
    return fitted.to_bytes() + fitted.encode(symbols)


def _estimate_with_tables(tables: bytes, symbols: NDArray[np.int32]) -> float:
    return 8 * len(tables) + FileTables.from_bytes(tables, len(symbols)).estimate_bits(symbols)
