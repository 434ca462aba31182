"""Records of one shard, read by their place in the index: bytes, checked, and raw numbers.

Every size is bounded by the file that is there before anything is made by it.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content
from codec.shards.index import IndexedRecord, Location, ShardHeader, read_index
from codec.shards.layout import index_name

AGAIN = "copy the shard again, or write it again"


@dataclass(frozen=True, slots=True, eq=False)
class RawRecord:
    """Numbers of one record.

    Attributes:
        raw_latents: float32 (C, h, w), the posterior's mode where there is a posterior.
        log_variance: float32 (C, h, w), or None.
    """

    raw_latents: NDArray[np.float32]
    log_variance: NDArray[np.float32] | None


class Bodies(Protocol):
    """Gives the bytes of records."""

    def body(self, location: Location) -> bytes:
        """Returns the bytes at a place, not yet checked."""
        ...

    def forget(self) -> None:
        """Gives back memory that was kept for the next call."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


class TarBodies:
    """Reads records' bytes out of a tar file, by their offset."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            OSError: It is missing or cannot be read.
        """
        self._path = path
        self._file = path.open("rb", buffering=0)  # records are read in any order
        self._size = path.stat().st_size

    def body(self, location: Location) -> bytes:
        """Returns the bytes at a place.

        Raises:
            ShardError: The file ends before them.
        """
        end = location.offset + location.size
        data = b""
        if end <= self._size:
            self._file.seek(location.offset)
            data = self._file.read(location.size)
        if len(data) != location.size:
            raise ShardError(
                f"{self._path}: found a file of {self._size} bytes, expected {end} or more; {AGAIN}"
            )
        return data

    def forget(self) -> None:
        """Does nothing: nothing is kept."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class ShardReader:
    """Reads records of one shard in any order."""

    def __init__(self, directory: Path, header: ShardHeader, *, keep: bool = False) -> None:
        """Opens the shard's file.

        Args:
            directory: Of the dataset.
            header: What `read_index` said.
            keep: Keep what had to be read beside records until `forget`: for Parquet, whose row
                groups are read as a whole.

        Raises:
            ShardError: The file is damaged.
            OSError: It is missing or cannot be read.
        """
        self.path = directory / header.file_name
        self.header = header
        self._bodies = self._open(keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._bodies.close()

    def forget(self) -> None:
        """Gives back the memory of what `keep` kept."""
        self._bodies.forget()

    def read_body(self, record: IndexedRecord) -> bytes:
        """Returns the bytes of a record: an `.lc` file, or its numbers.

        Raises:
            ShardError: They do not match the index; the message names file and key.
        """
        location, key = record.location, record.info.key
        try:
            body = self._bodies.body(location)
        except ShardError as error:
            raise ShardError(f"{error} (record {key!r})") from None
        if len(body) != location.size or zlib.crc32(body) != location.crc32:
            raise ShardError(
                f"{self.path}: found other bytes of the record {key!r} than its checksum says; "
                f"{AGAIN}"
            )
        return body

    def read_raw(self, record: IndexedRecord) -> RawRecord:
        """Returns the numbers of a record of raw content.

        Raises:
            ShardError: As for `read_body`, or their count is not what the grid asks for.
        """
        form, grid = self.header.form, record.location.grid
        assert form.content is not Content.LC, ".lc files need a decoder; see codec.shards.decoding"
        parts = 2 if form.posterior else 1
        expected = parts * self.header.channels * grid[0] * grid[1] * form.dtype.itemsize
        if record.location.size != expected:
            raise ShardError(
                f"{self.path}: found {record.location.size} bytes of the record "
                f"{record.info.key!r}, expected {expected} for {self.header.channels} channels of "
                f"{grid[0]}x{grid[1]}; write the shard again"
            )
        numbers = np.frombuffer(self.read_body(record), form.dtype).astype(np.float32)
        arrays = numbers.reshape(parts, self.header.channels, *grid)
        return RawRecord(arrays[0], arrays[1] if form.posterior else None)

    def _open(self, keep: bool) -> Bodies:
        if self.header.form.container is Container.TAR:
            return TarBodies(self.path)
        from codec.shards.parquet import ParquetBodies

        return ParquetBodies(self.path, self.header.form, keep=keep)


def iter_records(directory: Path, shard: int) -> Iterator[tuple[ShardReader, IndexedRecord]]:
    """Yields the records of a shard in order, each with the reader that is open for it.

    Raises:
        ShardError: The index is damaged.
        OSError: A file is missing or cannot be read.
    """
    header, entries = read_index(directory / index_name(shard))
    if not header.num_records:
        return
    with ShardReader(directory, header) as reader:
        for entry in entries:
            if not isinstance(entry, IndexedRecord):
                return
            yield reader, entry
