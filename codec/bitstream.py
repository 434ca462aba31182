"""The `.lc` container, version 1: a header, optional chunks and a payload, each with a checksum.

`FORMAT.md` beside this file is the specification. Two properties matter most. Untrusted input is
safe: every size is bounded before it is believed, memory follows the bytes that arrived, and
whatever is wrong is a `BitstreamError`. The encoding is canonical: `dumps(loads(data)) == data` for
every file that is accepted. What the payload's bytes mean is not this module's business.
"""

import enum
import io
import re
import unicodedata
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from codec.errors import LatentCodecError

# The high bit shows a 7-bit channel, the line feed shows newline conversion (PNG's idea, RFC 2083).
MAGIC = b"\x89LC\n"
VERSION = 1

MAX_FILE_BYTES = 2**30
MAX_HEAD_BYTES = 2**12
MAX_OPTIONAL_CHUNKS = 64
MAX_SIDE = 2**20
MAX_PIXELS = 2**31
MAX_CHANNELS = 2**10
MAX_SYMBOLS = 2**30
MAX_SYMBOLS_PER_PIXEL = 16
MIN_BOUND_PIXELS = 2**16  # the bound of smaller images is this one's: networks may pad them a lot
MAX_NAME_BYTES = 64
STEPS_PER_UNIT = 2**16

_MAX_UINT32 = 2**32 - 1
_MAX_VARINT_BYTES = 5
_CRC_BYTES = 4
_PIECE_BYTES = 2**18  # one read() may allocate what it is asked for, so ask for little
_QUANTIZER_UNIFORM = 0
_ID = re.compile(r"[0-9a-f]{16}")
_KIND = re.compile(r"[A-Za-z]{4}")
_AGAIN = "copy, download or write it again"


class BitstreamError(LatentCodecError):
    """An `.lc` file cannot be read, or what should become one does not fit the format."""


class NotLatentFileError(BitstreamError):
    """The bytes do not begin like an `.lc` file."""


class NewerVersionError(BitstreamError):
    """The file has a version of the format that this release does not know."""


class TruncatedFileError(BitstreamError):
    """The file ends before it is complete."""


class CorruptFileError(BitstreamError):
    """A checksum or the arrangement of the chunks is wrong."""


class InvalidHeaderError(BitstreamError):
    """A value in the header is malformed, out of bounds or unknown."""


class UnknownChunkError(BitstreamError):
    """The file has a chunk that is needed to decode it and that this release does not know."""


class ColorMode(enum.IntEnum):
    """What the picture is given back as; the network always sees RGB."""

    RGB = 0
    GRAY = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a reader must know before it can decode the payload.

    Attributes:
        latent_id: Encoder and bottleneck that made the latents; 16 lowercase hexadecimal digits.
        coder_id: Tables and context model that coded the payload, likewise.
        decoder_id: Decoder that the writer had beside them, likewise; for information.
        width: Pixels of the original, at most `MAX_SIDE`; width x height at most `MAX_PIXELS`.
        height: Likewise.
        color_mode: Whether the original was gray.
        latent_shape: (C, h, w) of the symbols; C at most `MAX_CHANNELS`, C x h x w at most
            `MAX_SYMBOLS` and `MAX_SYMBOLS_PER_PIXEL` a pixel (of at least `MIN_BOUND_PIXELS`).
        step: Quantiser step in units of 1 / `STEPS_PER_UNIT`, 1 to 2**32 - 1: an integer, so that
            nothing depends on how a float is rounded.
        symbols_crc32: `zlib.crc32` of the symbols as little-endian int32 in C, h, w order, by which
            a decoder that arrived at other symbols is found out.
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
    latent_shape: tuple[int, int, int]
    step: int
    symbols_crc32: int
    name: str = ""

    def __post_init__(self) -> None:
        for identity in (self.latent_id, self.coder_id, self.decoder_id):
            if not _ID.fullmatch(identity):
                raise InvalidHeaderError(
                    f"the header has the id {identity!r}; expected 16 lowercase hexadecimal digits"
                )
        channels, rows, columns = self.latent_shape
        pixels = self.width * self.height
        most_symbols = min(MAX_SYMBOLS, MAX_SYMBOLS_PER_PIXEL * max(pixels, MIN_BOUND_PIXELS))
        for what, value, least, most in (
            ("width", self.width, 1, MAX_SIDE),
            ("height", self.height, 1, MAX_SIDE),
            ("pixel count", pixels, 1, MAX_PIXELS),
            ("latent channel count", channels, 1, MAX_CHANNELS),
            ("latent height", rows, 1, MAX_SIDE),
            ("latent width", columns, 1, MAX_SIDE),
            ("symbol count", channels * rows * columns, 1, most_symbols),
            ("step", self.step, 1, _MAX_UINT32),
            ("symbol checksum", self.symbols_crc32, 0, _MAX_UINT32),
            ("name's size in bytes", len(self.name.encode("utf-8", "replace")), 0, MAX_NAME_BYTES),
        ):
            if not least <= value <= most:
                raise InvalidHeaderError(
                    f"the header's {what} is {value}; expected {least} to {most}"
                )
        # Controls could steer the terminal that prints them. Cc and Cs are fixed in Unicode for
        # good; Cs is also what bytes that are not UTF-8 were decoded to.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in self.name):
            raise InvalidHeaderError(
                f"the header's name is {self.name!a}; expected UTF-8 without control characters"
            )

    @property
    def step_size(self) -> float:
        """The quantiser step: raw latent = symbol x step_size."""
        return self.step / STEPS_PER_UNIT


@dataclass(frozen=True, slots=True)
class Chunk:
    """One typed piece of a file; see `LatentFile`.

    Attributes:
        kind: Four ASCII letters. A lowercase first letter marks a chunk that a reader may skip.
        body: Its bytes.
    """

    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LatentFile:
    """The content of one `.lc` file.

    Attributes:
        header: What is needed to decode the payload.
        payload: The entropy-coded symbols; may be empty.
        chunks: Optional chunks in the order of the file, known or not; a kind may come repeatedly.

    Raises:
        BitstreamError: There are too many chunks, or one is not of an optional kind.
    """

    header: Header
    payload: bytes
    chunks: tuple[Chunk, ...] = ()

    def __post_init__(self) -> None:
        kinds = [chunk.kind for chunk in self.chunks]
        if len(kinds) > MAX_OPTIONAL_CHUNKS:
            raise BitstreamError(
                f"there are {len(kinds)} optional chunks; expected at most {MAX_OPTIONAL_CHUNKS}"
            )
        for kind in kinds:
            if not _KIND.fullmatch(kind) or kind[0].isupper():
                raise BitstreamError(
                    f"an optional chunk has the kind {kind!r}; "
                    "expected four ASCII letters, the first one lowercase"
                )


def dumps(file: LatentFile) -> bytes:
    """Returns the bytes of an `.lc` file.

    Raises:
        BitstreamError: There would be more than `MAX_FILE_BYTES`.
    """
    parts = [MAGIC, bytes([VERSION])]
    head = Chunk("HEAD", _encode_header(file.header))
    for chunk in (head, *file.chunks, Chunk("DATA", file.payload)):
        before, after = _frame(chunk)
        parts += [before, chunk.body, after]
    size_bytes = sum(len(part) for part in parts)
    if size_bytes > MAX_FILE_BYTES:
        raise BitstreamError(
            f"the file would have {size_bytes} bytes; expected at most {MAX_FILE_BYTES}"
        )
    return b"".join(parts)


def loads(data: bytes) -> LatentFile:
    """Reads an `.lc` file from its bytes; see `read`."""
    return read(io.BytesIO(data))


def write(file: LatentFile, stream: BinaryIO) -> int:
    """Writes an `.lc` file to a buffered binary stream; returns its size in bytes. See `dumps`."""
    data = dumps(file)
    stream.write(data)
    return len(data)


def read(stream: BinaryIO) -> LatentFile:
    """Reads a binary stream to its end as one `.lc` file.

    The stream may give fewer bytes than it is asked for. Memory grows with the bytes that arrive,
    never with a size that they claim, and `MAX_FILE_BYTES` is the end of it.

    Raises:
        BitstreamError: The file is not one, or not whole; a subclass says what is wrong.
    """
    reader = _Reader(stream)
    header = _read_header(reader)
    chunks: list[Chunk] = []
    while (chunk := _read_chunk(reader, "DATA", MAX_FILE_BYTES)).kind[0].islower():
        chunks.append(chunk)
        if len(chunks) > MAX_OPTIONAL_CHUNKS:
            raise CorruptFileError(
                f"the file has more than {MAX_OPTIONAL_CHUNKS} optional chunks; "
                "expected no more: write it again with fewer"
            )
    if chunk.kind == "HEAD":
        raise CorruptFileError(f"the file has a second HEAD chunk; expected one: {_AGAIN}")
    if chunk.kind != "DATA":
        raise UnknownChunkError(
            f"the file needs its chunk {chunk.kind}, which this release does not know; "
            "update latent-codec"
        )
    if stream.read(1):
        raise CorruptFileError(
            f"the file goes on after byte {reader.position}, where its DATA chunk should end it; "
            f"{_AGAIN}"
        )
    return LatentFile(header, chunk.body, tuple(chunks))


def read_header(stream: BinaryIO) -> Header:
    """Reads the header of an `.lc` file and little more than 4 KiB of the stream at most.

    It says nothing about the rest of the file, which may be missing or damaged.

    Raises:
        BitstreamError: As for `read`.
    """
    return _read_header(_Reader(stream))


@dataclass(slots=True)
class _Reader:
    """Takes bytes off a stream and knows which error fits the place that it reads from."""

    stream: BinaryIO
    place: str = "file"
    ended: type[BitstreamError] = TruncatedFileError
    malformed: type[BitstreamError] = CorruptFileError
    position: int = 0

    def take(self, size: int, what: str) -> bytes:
        taken = bytearray()
        while len(taken) < size:
            piece = self.stream.read(min(size - len(taken), _PIECE_BYTES))
            if not piece:
                raise self.ended(
                    f"the {self.place} ends after {self.position} bytes, "
                    f"before the end of its {what}; {_AGAIN}"
                )
            taken += piece
            self.position += len(piece)
        return bytes(taken)

    def take_byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def take_varint(self, what: str) -> int:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            byte = self.take_byte(what)
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                break
        if byte >= 0x80 or value > _MAX_UINT32 or (byte == 0 and index > 0):
            raise self.malformed(
                f"the {self.place}'s {what} is not a 32-bit number in its shortest form; {_AGAIN}"
            )
        return value


def _read_header(reader: _Reader) -> Header:
    start = reader.take(len(MAGIC), "first four bytes")
    if start != MAGIC:
        raise NotLatentFileError(
            f"the file is not an .lc file: it begins with {start!r}, expected {MAGIC!r}; "
            "give one that latent-codec wrote, copied without conversion"
        )
    version = reader.take_byte("version")
    if version > VERSION:
        raise NewerVersionError(
            f"the file has version {version} of the .lc format; this release reads {VERSION}: "
            "update latent-codec"
        )
    if version < VERSION:
        raise CorruptFileError(f"the file has version {version}, which never was; {_AGAIN}")
    chunk = _read_chunk(reader, "HEAD", MAX_HEAD_BYTES)
    if chunk.kind != "HEAD":
        raise CorruptFileError(f"the file's first chunk is {chunk.kind}, not HEAD; {_AGAIN}")
    return _decode_header(chunk.body)


def _read_chunk(reader: _Reader, expected: str, max_bytes: int) -> Chunk:
    kind = reader.take(4, f"{expected} chunk").decode("latin-1")
    if not _KIND.fullmatch(kind):
        raise CorruptFileError(
            f"the file has {kind!a} before byte {reader.position}, where a chunk should begin; "
            f"{_AGAIN}"
        )
    size = reader.take_varint(f"{kind} chunk's length")
    most = min(max_bytes, MAX_FILE_BYTES - reader.position - _CRC_BYTES)
    if size > most:
        raise CorruptFileError(
            f"the file's {kind} chunk claims {size} bytes; expected at most {most}: {_AGAIN}"
        )
    chunk = Chunk(kind, reader.take(size, f"{kind} chunk"))
    if reader.take(_CRC_BYTES, f"{kind} chunk") != _frame(chunk)[1]:
        raise CorruptFileError(f"the file's {kind} chunk does not match its checksum; {_AGAIN}")
    return chunk


def _frame(chunk: Chunk) -> tuple[bytes, bytes]:
    """Returns what stands before and after the body of a chunk; the second is its checksum."""
    before = chunk.kind.encode("ascii") + _encode_varint(len(chunk.body))
    crc32 = zlib.crc32(chunk.body, zlib.crc32(before))
    return before, crc32.to_bytes(_CRC_BYTES, "little")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _encode_header(header: Header) -> bytes:
    name = header.name.encode("utf-8")
    return b"".join(
        (
            bytes.fromhex(header.latent_id + header.coder_id + header.decoder_id),
            _encode_varint(header.width),
            _encode_varint(header.height),
            bytes([header.color_mode, len(name)]),
            name,
            bytes([_QUANTIZER_UNIFORM]),
            *map(_encode_varint, (*header.latent_shape, header.step)),
            header.symbols_crc32.to_bytes(_CRC_BYTES, "little"),
        )
    )


def _decode_header(body: bytes) -> Header:
    fields = _Reader(io.BytesIO(body), "header", InvalidHeaderError, InvalidHeaderError)
    latent_id, coder_id, decoder_id = (fields.take(8, "ids").hex() for _ in range(3))
    width = fields.take_varint("width")
    height = fields.take_varint("height")
    color_mode = fields.take_byte("colour mode")
    name = fields.take(fields.take_byte("name"), "name").decode("utf-8", "surrogateescape")
    quantizer = fields.take_byte("quantiser")
    # What follows depends on the quantiser, so an unknown one ends the reading here.
    if color_mode > max(ColorMode) or quantizer != _QUANTIZER_UNIFORM:
        raise InvalidHeaderError(
            f"the header has colour mode {color_mode} and quantiser {quantizer}; this release "
            f"knows modes up to {max(ColorMode)} and quantiser {_QUANTIZER_UNIFORM}: "
            "update latent-codec"
        )
    channels, rows, columns = (fields.take_varint("latent shape") for _ in range(3))
    step = fields.take_varint("step")
    symbols_crc32 = int.from_bytes(fields.take(_CRC_BYTES, "symbol checksum"), "little")
    if fields.position != len(body):
        raise InvalidHeaderError(
            f"the header has {len(body)} bytes; expected {fields.position}: {_AGAIN}"
        )
    return Header(
        latent_id,
        coder_id,
        decoder_id,
        width,
        height,
        ColorMode(color_mode),
        (channels, rows, columns),
        step,
        symbols_crc32,
        name,
    )
