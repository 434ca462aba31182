"""The `.lc` container, version 1: a header, optional chunks and a payload, each with a checksum.

`FORMAT.md` beside this file is the specification. Two properties matter most. Untrusted input is
safe: every size is bounded before it is believed, memory follows the bytes that arrived, and
whatever is wrong is a `BitstreamError`. The encoding is canonical: `dumps(loads(data)) == data` for
every file that is accepted. What the payload's bytes mean is not this module's business.
"""

import io
import re
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from codec.header import (
    FILE_TABLES_ID,
    MAX_CHANNELS,
    MAX_CODEBOOKS,
    MAX_CODES,
    MAX_NAME_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    MAX_STEPPED_CHANNELS,
    MAX_SYMBOLS,
    MAX_SYMBOLS_PER_PIXEL,
    MIN_BOUND_PIXELS,
    STEPS_PER_UNIT,
    ChannelSteps,
    CodeIndices,
    ColorMode,
    Grid,
    Header,
    OneStep,
    Quantizer,
    decode_header,
    encode_header,
)
from codec.wire import (
    AGAIN,
    BitstreamError,
    CorruptFileError,
    InvalidHeaderError,
    NewerVersionError,
    NotLatentFileError,
    Reader,
    TruncatedFileError,
    UnknownChunkError,
    encode_varint,
)

__all__ = [
    "FILE_TABLES_ID",
    "MAGIC",
    "MAX_CHANNELS",
    "MAX_CODEBOOKS",
    "MAX_CODES",
    "MAX_FILE_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_NAME_BYTES",
    "MAX_OPTIONAL_CHUNKS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MAX_STEPPED_CHANNELS",
    "MAX_SYMBOLS",
    "MAX_SYMBOLS_PER_PIXEL",
    "MAX_TABLES_BYTES",
    "MIN_BOUND_PIXELS",
    "STEPS_PER_UNIT",
    "VERSION",
    "BitstreamError",
    "ChannelSteps",
    "Chunk",
    "CodeIndices",
    "ColorMode",
    "CorruptFileError",
    "Grid",
    "Header",
    "InvalidHeaderError",
    "LatentFile",
    "NewerVersionError",
    "NotLatentFileError",
    "OneStep",
    "Quantizer",
    "TruncatedFileError",
    "UnknownChunkError",
    "dumps",
    "loads",
    "read",
    "read_header",
    "write",
]

# The high bit shows a 7-bit channel, the line feed shows newline conversion (PNG's idea, RFC 2083).
MAGIC = b"\x89LC\n"
VERSION = 1

MAX_FILE_BYTES = 2**30
MAX_HEAD_BYTES = 2**12
MAX_TABLES_BYTES = 2**18
MAX_OPTIONAL_CHUNKS = 64

_CRC_BYTES = 4
_KIND = re.compile(r"[A-Za-z]{4}")


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
        tables: The tables that the payload was coded with, where the header's coder id is
            `FILE_TABLES_ID`; else None.

    Raises:
        BitstreamError: There are too many chunks, one is not of an optional kind, or the tables do
            not go with the coder id.
    """

    header: Header
    payload: bytes
    chunks: tuple[Chunk, ...] = ()
    tables: bytes | None = None

    def __post_init__(self) -> None:
        if (self.tables is None) == (self.header.coder_id == FILE_TABLES_ID):
            raise BitstreamError(
                f"the file has the coder id {self.header.coder_id} and "
                f"{'no' if self.tables is None else 'its own'} tables; expected tables in the file "
                f"exactly where that id is {FILE_TABLES_ID}"
            )
        if self.tables is not None and len(self.tables) > MAX_TABLES_BYTES:
            raise BitstreamError(
                f"the file's tables have {len(self.tables)} bytes; expected at most "
                f"{MAX_TABLES_BYTES}"
            )
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
    head = Chunk("HEAD", encode_header(file.header))
    tables = () if file.tables is None else (Chunk("TABL", file.tables),)
    for chunk in (head, *file.chunks, *tables, Chunk("DATA", file.payload)):
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
    reader = Reader(stream)
    header = _read_header(reader)
    chunks: list[Chunk] = []
    while (chunk := _read_chunk(reader, "DATA", MAX_FILE_BYTES)).kind[0].islower():
        chunks.append(chunk)
        if len(chunks) > MAX_OPTIONAL_CHUNKS:
            raise CorruptFileError(
                f"the file has more than {MAX_OPTIONAL_CHUNKS} optional chunks; "
                "expected no more: write it again with fewer"
            )
    tables = None
    if chunk.kind == "TABL":
        _check_tables(header, chunk)
        tables = chunk.body
        chunk = _read_chunk(reader, "DATA", MAX_FILE_BYTES)
    _check_data(header, chunk, tables)
    if stream.read(1):
        raise CorruptFileError(
            f"the file goes on after byte {reader.position}, where its DATA chunk should end it; "
            f"{AGAIN}"
        )
    return LatentFile(header, chunk.body, tuple(chunks), tables)


def read_header(stream: BinaryIO) -> Header:
    """Reads the header of an `.lc` file and little more than 4 KiB of the stream at most.

    It says nothing about the rest of the file, which may be missing or damaged.

    Raises:
        BitstreamError: As for `read`.
    """
    return _read_header(Reader(stream))


def _read_header(reader: Reader) -> Header:
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
        raise CorruptFileError(f"the file has version {version}, which never was; {AGAIN}")
    chunk = _read_chunk(reader, "HEAD", MAX_HEAD_BYTES)
    if chunk.kind != "HEAD":
        raise CorruptFileError(f"the file's first chunk is {chunk.kind}, not HEAD; {AGAIN}")
    return decode_header(chunk.body)


def _check_tables(header: Header, chunk: Chunk) -> None:
    if header.coder_id != FILE_TABLES_ID:
        raise CorruptFileError(
            f"the file has a TABL chunk beside the coder id {header.coder_id}; expected one only "
            f"with the id {FILE_TABLES_ID}: {AGAIN}"
        )


def _check_data(header: Header, chunk: Chunk, tables: bytes | None) -> None:
    """Refuses a file whose chunk in the last place is not DATA, or that lacks its tables."""
    if chunk.kind in ("HEAD", "TABL"):
        raise CorruptFileError(f"the file has a second {chunk.kind} chunk; expected one: {AGAIN}")
    if chunk.kind[0].islower():
        raise CorruptFileError(
            f"the file has its chunk {chunk.kind} between TABL and DATA; expected it before: "
            f"{AGAIN}"
        )
    if chunk.kind != "DATA":
        raise UnknownChunkError(
            f"the file needs its chunk {chunk.kind}, which this release does not know; "
            "update latent-codec"
        )
    if tables is None and header.coder_id == FILE_TABLES_ID:
        raise CorruptFileError(
            f"the file has no TABL chunk, which its coder id {FILE_TABLES_ID} asks for; {AGAIN}"
        )


def _read_chunk(reader: Reader, expected: str, max_bytes: int) -> Chunk:
    kind = reader.take(4, f"{expected} chunk").decode("latin-1")
    if not _KIND.fullmatch(kind):
        raise CorruptFileError(
            f"the file has {kind!a} before byte {reader.position}, where a chunk should begin; "
            f"{AGAIN}"
        )
    size = reader.take_varint(f"{kind} chunk's length")
    if kind == "TABL":
        max_bytes = min(max_bytes, MAX_TABLES_BYTES)
    most = min(max_bytes, MAX_FILE_BYTES - reader.position - _CRC_BYTES)
    if size > most:
        raise CorruptFileError(
            f"the file's {kind} chunk claims {size} bytes; expected at most {most}: {AGAIN}"
        )
    chunk = Chunk(kind, reader.take(size, f"{kind} chunk"))
    if reader.take(_CRC_BYTES, f"{kind} chunk") != _frame(chunk)[1]:
        raise CorruptFileError(f"the file's {kind} chunk does not match its checksum; {AGAIN}")
    return chunk


def _frame(chunk: Chunk) -> tuple[bytes, bytes]:
    """Returns what stands before and after the body of a chunk; the second is its checksum."""
    before = chunk.kind.encode("ascii") + encode_varint(len(chunk.body))
    crc32 = zlib.crc32(chunk.body, zlib.crc32(before))
    return before, crc32.to_bytes(_CRC_BYTES, "little")
