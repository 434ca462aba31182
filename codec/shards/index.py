"""The index of a shard: what is in it, where each record lies, which sources gave none.

A gzip file of JSON lines: the shard's header, its records in the order they were added, its errors.
It is written last, so its presence says that the shard is complete.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from codec.bitstream import MAX_FILE_BYTES
from codec.header import MAX_CHANNELS, MAX_SIDE
from codec.shards import fields
from codec.shards.counts import (
    check_version,
    counts_from_json,
    grids_from_json,
    grids_to_json,
)
from codec.shards.errors import ShardError
from codec.shards.forms import ShardForm
from codec.shards.layout import MAX_SHARDS, durable_output, shard_name
from codec.shards.records import ItemError, RecordInfo
from codec.shards.statistics import LatentStatistics, statistics_in

FORMAT = "latent-codec shard"
MAX_LINE_BYTES = 2**22
MAX_HEADER_BYTES = 2**24
MAX_RECORDS = 2**24  # of one shard

_HEADER_FIELDS = (
    {"format", "version", "shard", "container", "content", "posterior", "file", "bytes", "sha256"}
    | {"payload_bytes", "images", "records", "errors", "captions", "channels", "grids", "labels"}
    | {"statistics"}
)
_LOCATION_FIELDS = ("member", "offset", "bytes", "crc32", "grid")


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a record lie.

    Attributes:
        member: Number of the tar member, or of the row group in a Parquet file.
        offset: Of the record's first byte in the tar file, or its row in the row group.
        size: Bytes of the record: the `.lc` file, or the raw numbers.
        crc32: Of those bytes.
        grid: (h, w) of the latents.
    """

    member: int
    offset: int
    size: int
    crc32: int
    grid: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        values = (self.member, self.offset, self.size, self.crc32, list(self.grid))
        return dict(zip(_LOCATION_FIELDS, values, strict=True))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Takes its fields out of an object that may have others.

        Raises:
            ShardError: One is missing or out of its range.
        """
        rows, columns = fields.integers(content, "grid", 2, 1, MAX_SIDE)
        return cls(
            fields.integer(content, "member", 0),
            fields.integer(content, "offset", 0),
            fields.integer(content, "bytes", 0, MAX_FILE_BYTES),
            fields.integer(content, "crc32", 0, 2**32 - 1),
            (rows, columns),
        )


@dataclass(frozen=True, slots=True)
class IndexedRecord:
    """One record of a shard: what is known of it, and where it lies."""

    info: RecordInfo
    location: Location

    def to_line(self) -> bytes:
        """Returns the record's line of the index, with its end."""
        return fields.compact({**self.info.to_json(), **self.location.to_json()}) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Returns what `to_line` gave.

        Raises:
            ShardError: It is something else.
        """
        content = fields.parse_object(line)
        location = Location.from_json(content)
        for name in _LOCATION_FIELDS:
            del content[name]
        return cls(RecordInfo.from_json(content), location)


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What the first line of an index says about a whole shard.

    Attributes:
        shard: Its number.
        form: Its container and content.
        size_bytes: Of the shard's file.
        sha256: Of the shard's file.
        payload_bytes: Of all records alone.
        num_images: Sources that gave at least one record.
        num_records: Records.
        num_errors: Sources, or parts of them, that gave none.
        num_captions: Records with a caption.
        channels: C; 0 in a shard without records.
        grids: How many records there are of each (h, w).
        labels: How many records there are of each label.
        statistics: Of the raw latents as readers get them.
    """

    shard: int
    form: ShardForm
    size_bytes: int
    sha256: str
    payload_bytes: int = 0
    num_images: int = 0
    num_records: int = 0
    num_errors: int = 0
    num_captions: int = 0
    channels: int = 0
    grids: Mapping[tuple[int, int], int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    statistics: LatentStatistics = field(default_factory=LatentStatistics)

    @property
    def file_name(self) -> str:
        """Name of the shard's file."""
        return shard_name(self.shard, self.form.container)

    def to_line(self) -> bytes:
        """Returns the first line of the index, with its end."""
        content = {
            "format": FORMAT,
            "version": fields.VERSION,
            "shard": self.shard,
            **self.form.to_json(),
            "file": self.file_name,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "payload_bytes": self.payload_bytes,
            "images": self.num_images,
            "records": self.num_records,
            "errors": self.num_errors,
            "captions": self.num_captions,
            "channels": self.channels,
            "grids": grids_to_json(self.grids),
            "labels": dict(sorted(self.labels.items())),
            "statistics": self.statistics.to_json(),
        }
        return fields.compact(content) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Returns what `to_line` gave.

        Raises:
            ShardError: It is something else, or of a newer version.
        """
        content = fields.parse_object(line)
        check_version(content, FORMAT)
        fields.check_names(content, _HEADER_FIELDS, "the header of an index")
        header = cls(
            shard=fields.integer(content, "shard", 0, MAX_SHARDS - 1),
            form=ShardForm.from_json(content),
            size_bytes=fields.integer(content, "bytes", 0),
            sha256=fields.digest(content, "sha256", 64),
            payload_bytes=fields.integer(content, "payload_bytes", 0),
            num_images=fields.integer(content, "images", 0, MAX_RECORDS),
            num_records=fields.integer(content, "records", 0, MAX_RECORDS),
            num_errors=fields.integer(content, "errors", 0, MAX_RECORDS),
            num_captions=fields.integer(content, "captions", 0, MAX_RECORDS),
            channels=fields.integer(content, "channels", 0, MAX_CHANNELS),
            grids=grids_from_json(fields.mapping(content, "grids")),
            labels=counts_from_json(fields.mapping(content, "labels")),
            statistics=statistics_in(content, "statistics"),
        )
        if content.get("file") != header.file_name:
            raise ShardError(
                f"found the file {content.get('file')!r}, expected {header.file_name!r}"
            )
        return header


def write_index(
    path: Path, header: ShardHeader, lines: Sequence[bytes], errors: Sequence[ItemError]
) -> None:
    """Writes an index, the last step of a shard; equal content gives equal bytes.

    Raises:
        ShardError: A line is longer than readers take.
        OSError: The disk is full, or does not take the file.
    """
    error_lines = [fields.compact(error.to_json()) + b"\n" for error in errors]
    first = header.to_line()
    longest = max(map(len, (*lines, *error_lines)), default=0)
    if longest > MAX_LINE_BYTES or len(first) > MAX_HEADER_BYTES:
        raise ShardError(
            f"found a record of {longest} bytes in {path.name}, or labels of {len(first)}, "
            f"expected at most {MAX_LINE_BYTES} and {MAX_HEADER_BYTES}; shorten captions or labels"
        )
    with (
        durable_output(path) as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed,
    ):
        packed.write(first)
        packed.writelines(lines)
        packed.writelines(error_lines)


def read_header(path: Path) -> ShardHeader:
    """Reads the first line of an index.

    Raises:
        ShardError: The index is damaged.
        OSError: It is missing or cannot be read.
    """
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as packed:
        return _header(str(path), packed)


def read_index(path: Path) -> tuple[ShardHeader, Iterator[IndexedRecord | ItemError]]:
    """Reads an index: its header now, its records and then its errors as they are asked for.

    Raises:
        ShardError: The index is damaged; the iterator may raise it too.
        OSError: It is missing or cannot be read.
    """
    header = read_header(path)
    return header, _parsed(path, header)


def record_lines(path: Path) -> tuple[ShardHeader, list[bytes]]:
    """Reads the lines of all records without taking them apart, for who needs only some.

    Raises:
        ShardError: The index is damaged.
        OSError: It is missing or cannot be read.
    """
    with path.open("rb") as stream:
        return record_lines_from(stream, str(path))


def record_lines_from(stream: BinaryIO, name: str) -> tuple[ShardHeader, list[bytes]]:
    """Reads an index from a binary stream that has a name; see `record_lines`."""
    with gzip.GzipFile(fileobj=stream) as packed:
        header = _header(name, packed)
        return header, [_line(name, packed) for _ in range(header.num_records)]


def parse_record(name: str | Path, line: bytes) -> IndexedRecord:
    """Takes one of `record_lines` apart.

    Raises:
        ShardError: It is malformed.
    """
    try:
        return IndexedRecord.from_line(line)
    except ShardError as error:
        raise ShardError(f"{name}: {error}") from None


def iter_errors(path: Path) -> Iterator[ItemError]:
    """Yields the errors of a shard.

    Raises:
        ShardError: The index is damaged.
        OSError: It is missing or cannot be read.
    """
    header = read_header(path)
    if header.num_errors:
        yield from (entry for entry in _parsed(path, header) if isinstance(entry, ItemError))


def _parsed(path: Path, header: ShardHeader) -> Iterator[IndexedRecord | ItemError]:
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as packed:
        name = str(path)
        _header(name, packed)
        for _ in range(header.num_records):
            yield parse_record(name, _line(name, packed))
        for _ in range(header.num_errors):
            try:
                yield ItemError.from_json(fields.parse_object(_line(name, packed)))
            except ShardError as error:
                raise ShardError(f"{path}: {error}") from None
        if _read(name, packed, 1):
            raise ShardError(
                f"{path}: found more lines than its header counts; write the shard again"
            )


def _header(name: str, packed: gzip.GzipFile) -> ShardHeader:
    try:
        return ShardHeader.from_line(_line(name, packed, MAX_HEADER_BYTES))
    except ShardError as error:
        raise (error if str(error).startswith(name) else ShardError(f"{name}: {error}")) from None


def _line(name: str, packed: BinaryIO | gzip.GzipFile, most: int = MAX_LINE_BYTES) -> bytes:
    line = _read(name, packed, most + 1)
    if len(line) > most or not line.endswith(b"\n"):
        raise ShardError(
            f"{name}: found a line that is cut short or longer than {most} bytes; write the shard "
            "again"
        )
    return line


def _read(name: str, packed: BinaryIO | gzip.GzipFile, most: int) -> bytes:
    try:
        return packed.readline(most)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ShardError(
            f"{name}: found damage in the gzip data; copy the file again, or write the shard again"
        ) from None
