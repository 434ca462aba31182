"""HEAD, the first chunk of an `.lc` file: the picture, its model, and how latents became symbols.

`FORMAT.md` beside this file is the specification. Every size is bounded here, before anything is
made by it. `codec.bitstream` is what others import.
"""

import enum
import io
import re
import unicodedata
from dataclasses import dataclass

from codec.wire import AGAIN, MAX_UINT32, InvalidHeaderError, Reader, encode_varint

MAX_SIDE = 2**20
MAX_PIXELS = 2**31
MAX_CHANNELS = 2**10
MAX_STEPPED_CHANNELS = 2**9  # of which each has a step of its own: HEAD must hold them all
MAX_SYMBOLS = 2**30
MAX_SYMBOLS_PER_PIXEL = 16
MIN_BOUND_PIXELS = 2**16  # the bound of smaller images is this one's: networks may pad them a lot
MAX_NAME_BYTES = 64
MAX_CODEBOOKS = 8
MAX_CODES = 2**16
STEPS_PER_UNIT = 2**16
FILE_TABLES_ID = "0" * 16  # the coder id that says: the tables travel in the file

_CRC_BYTES = 4
_ID = re.compile(r"[0-9a-f]{16}")


class ColorMode(enum.IntEnum):
    """What the picture is given back as; the network always sees RGB."""

    RGB = 0
    GRAY = 1


@dataclass(frozen=True, slots=True)
class OneStep:
    """Quantiser 0: latents were rounded to multiples of one step.

    Attributes:
        shape: (C, h, w) of the symbols; C at most `MAX_CHANNELS`.
        step: In units of 1 / `STEPS_PER_UNIT`, 1 to 2**32 - 1: an integer, so that nothing
            depends on how a float is rounded.

    Raises:
        InvalidHeaderError: A value breaks its rule.
    """

    shape: tuple[int, int, int]
    step: int

    def __post_init__(self) -> None:
        _check_shape(self.shape, MAX_CHANNELS)
        _check("step", self.step, 1, MAX_UINT32)

    @property
    def num_symbols(self) -> int:
        """C * h * w."""
        return _product(self.shape)


@dataclass(frozen=True, slots=True)
class ChannelSteps:
    """Quantiser 1: latents were rounded to multiples of a step that each channel has of its own.

    Attributes:
        shape: (C, h, w) of the symbols; C at most `MAX_STEPPED_CHANNELS`.
        steps: C steps, each as in `OneStep`.

    Raises:
        InvalidHeaderError: A value breaks its rule.
    """

    shape: tuple[int, int, int]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_shape(self.shape, MAX_STEPPED_CHANNELS)
        _check("step count", len(self.steps), self.shape[0], self.shape[0])
        for step in self.steps:
            _check("step", step, 1, MAX_UINT32)

    @property
    def num_symbols(self) -> int:
        """C * h * w."""
        return _product(self.shape)


@dataclass(frozen=True, slots=True)
class Grid:
    """The indices of one codebook.

    Attributes:
        num_codes: 2 to `MAX_CODES`; an index is below it.
        rows: 1 to `MAX_SIDE`.
        columns: Likewise.

    Raises:
        InvalidHeaderError: A value breaks its rule.
    """

    num_codes: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        _check("number of codes", self.num_codes, 2, MAX_CODES)
        _check("index rows", self.rows, 1, MAX_SIDE)
        _check("index columns", self.columns, 1, MAX_SIDE)


@dataclass(frozen=True, slots=True)
class CodeIndices:
    """Quantiser 2: the symbols are indices of codes.

    Attributes:
        grids: One a codebook, coarse to fine; 1 to `MAX_CODEBOOKS`.

    Raises:
        InvalidHeaderError: There are none or too many.
    """

    grids: tuple[Grid, ...]

    def __post_init__(self) -> None:
        _check("number of codebooks", len(self.grids), 1, MAX_CODEBOOKS)

    @property
    def num_symbols(self) -> int:
        """Indices of all codebooks."""
        return sum(grid.rows * grid.columns for grid in self.grids)


Quantizer = OneStep | ChannelSteps | CodeIndices


@dataclass(frozen=True, slots=True)
class Header:
    """What a reader must know before it can decode the payload.

    Attributes:
        latent_id: Encoder and bottleneck that made the latents; 16 lowercase hexadecimal digits.
        coder_id: Tables and context model that coded the payload, likewise; `FILE_TABLES_ID` for
            tables that travel in the file.
        decoder_id: Decoder that the writer had beside them, likewise; for information.
        width: Pixels of the original, at most `MAX_SIDE`; width x height at most `MAX_PIXELS`.
        height: Likewise.
        color_mode: Whether the original was gray.
        quantizer: How latents became symbols, and how many there are: at most `MAX_SYMBOLS`, and
            `MAX_SYMBOLS_PER_PIXEL` a pixel (of at least `MIN_BOUND_PIXELS`).
        symbols_crc32: `zlib.crc32` of the symbols as little-endian int32, in C, h, w order or index
            grid after grid, by which a decoder that arrived at other symbols is found out.
        name: Model name for people, at most `MAX_NAME_BYTES` of UTF-8 without control characters.
            Untrusted text: nothing may be looked up, opened or fetched by it.

    Raises:
        InvalidHeaderError: A value breaks its rule.
    """

    latent_id: str
    coder_id: str
    decoder_id: str
    width: int
    height: int
    color_mode: ColorMode
    quantizer: Quantizer
    symbols_crc32: int
    name: str = ""

    def __post_init__(self) -> None:
        for identity in (self.latent_id, self.coder_id, self.decoder_id):
            if not _ID.fullmatch(identity):
                raise InvalidHeaderError(
                    f"the header has the id {identity!r}; expected 16 lowercase hexadecimal digits"
                )
        pixels = self.width * self.height
        most_symbols = min(MAX_SYMBOLS, MAX_SYMBOLS_PER_PIXEL * max(pixels, MIN_BOUND_PIXELS))
        _check("width", self.width, 1, MAX_SIDE)
        _check("height", self.height, 1, MAX_SIDE)
        _check("pixel count", pixels, 1, MAX_PIXELS)
        _check("symbol count", self.quantizer.num_symbols, 1, most_symbols)
        _check("symbol checksum", self.symbols_crc32, 0, MAX_UINT32)
        size_bytes = len(self.name.encode("utf-8", "replace"))
        _check("name's size in bytes", size_bytes, 0, MAX_NAME_BYTES)
        # Controls could steer the terminal that prints them. Cc and Cs are fixed in Unicode for
        # good; Cs is also what bytes that are not UTF-8 were decoded to.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in self.name):
            raise InvalidHeaderError(
                f"the header's name is {self.name!a}; expected UTF-8 without control characters"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of the symbols; None where they are indices."""
        return None if isinstance(self.quantizer, CodeIndices) else self.quantizer.shape

    @property
    def step(self) -> int | None:
        """The step that serves all channels, in units of 1 / `STEPS_PER_UNIT`, if there is one."""
        return self.quantizer.step if isinstance(self.quantizer, OneStep) else None

    @property
    def step_size(self) -> float | None:
        """That step in units of raw latents: raw latent = symbol x step_size."""
        return None if self.step is None else self.step / STEPS_PER_UNIT


def encode_header(header: Header) -> bytes:
    """Returns the body of HEAD."""
    name = header.name.encode("utf-8")
    return b"".join(
        (
            bytes.fromhex(header.latent_id + header.coder_id + header.decoder_id),
            encode_varint(header.width),
            encode_varint(header.height),
            bytes([header.color_mode, len(name)]),
            name,
            _encode_quantizer(header.quantizer),
            header.symbols_crc32.to_bytes(_CRC_BYTES, "little"),
        )
    )


def _encode_quantizer(quantizer: Quantizer) -> bytes:
    match quantizer:
        case OneStep(shape, step):
            return b"\x00" + b"".join(map(encode_varint, (*shape, step)))
        case ChannelSteps(shape, steps):
            return b"\x01" + b"".join(map(encode_varint, (*shape, *steps)))
        case CodeIndices(grids):
            numbers = [n for grid in grids for n in (grid.num_codes, grid.rows, grid.columns)]
            return bytes([2, len(grids)]) + b"".join(map(encode_varint, numbers))


def decode_header(body: bytes) -> Header:
    """Reads the body of HEAD.

    Raises:
        InvalidHeaderError: It is malformed, out of bounds or of unknown meaning.
    """
    fields = Reader(io.BytesIO(body), "header", InvalidHeaderError, InvalidHeaderError)
    latent_id, coder_id, decoder_id = (fields.take(8, "ids").hex() for _ in range(3))
    width = fields.take_varint("width")
    height = fields.take_varint("height")
    color_mode = fields.take_byte("colour mode")
    name = fields.take(fields.take_byte("name"), "name").decode("utf-8", "surrogateescape")
    kind = fields.take_byte("quantiser")
    # What follows depends on the quantiser, so an unknown one ends the reading here.
    if color_mode > max(ColorMode) or kind >= len(_DECODERS):
        raise InvalidHeaderError(
            f"the header has colour mode {color_mode} and quantiser {kind}; this release "
            f"knows modes up to {max(ColorMode)} and quantisers up to {len(_DECODERS) - 1}: "
            "update latent-codec"
        )
    quantizer = _DECODERS[kind](fields)
    symbols_crc32 = int.from_bytes(fields.take(_CRC_BYTES, "symbol checksum"), "little")
    if fields.position != len(body):
        raise InvalidHeaderError(
            f"the header has {len(body)} bytes; expected {fields.position}: {AGAIN}"
        )
    mode = ColorMode(color_mode)
    return Header(
        latent_id, coder_id, decoder_id, width, height, mode, quantizer, symbols_crc32, name
    )


def _decode_shape(fields: Reader) -> tuple[int, int, int]:
    channels, rows, columns = (fields.take_varint("latent shape") for _ in range(3))
    return channels, rows, columns


def _decode_one_step(fields: Reader) -> OneStep:
    return OneStep(_decode_shape(fields), fields.take_varint("step"))


def _decode_channel_steps(fields: Reader) -> ChannelSteps:
    shape = _decode_shape(fields)
    _check_shape(shape, MAX_STEPPED_CHANNELS)  # before so many steps are read
    return ChannelSteps(shape, tuple(fields.take_varint("steps") for _ in range(shape[0])))


def _decode_code_indices(fields: Reader) -> CodeIndices:
    count = fields.take_byte("number of codebooks")
    _check("number of codebooks", count, 1, MAX_CODEBOOKS)
    grids = [[fields.take_varint("index grids") for _ in range(3)] for _ in range(count)]
    return CodeIndices(tuple(Grid(*numbers) for numbers in grids))


_DECODERS = (_decode_one_step, _decode_channel_steps, _decode_code_indices)


def _check_shape(shape: tuple[int, int, int], most_channels: int) -> None:
    channels, rows, columns = shape
    _check("latent channel count", channels, 1, most_channels)
    _check("latent height", rows, 1, MAX_SIDE)
    _check("latent width", columns, 1, MAX_SIDE)


def _check(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidHeaderError(f"the header's {what} is {value}; expected {least} to {most}")


def _product(shape: tuple[int, int, int]) -> int:
    channels, rows, columns = shape
    return channels * rows * columns
