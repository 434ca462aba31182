"""How records lie in a shard: tar members of many records, or row groups of a Parquet file.

A tar member holds `.lc` files one after another, or a safetensors file with one tensor for each
grid size; so a tar header, and a safetensors header, is shared by many records.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from codec.shards import fields
from codec.shards.forms import Content, ShardForm
from codec.shards.records import RecordInfo

BLOCK_BYTES = 512  # of tar
LATENTS, MOMENTS = "latents", "moments"


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A record that is to be written.

    Attributes:
        info: What is known of it.
        body: The `.lc` file; or the numbers (C, h, w), with a posterior (2 C, h, w): the mode and
            the log variance.
        grid: (h, w).
    """

    info: RecordInfo
    body: bytes
    grid: tuple[int, int]


class MemberWriter(Protocol):
    """Writes the records of a shard, many at a time."""

    @property
    def member_bytes(self) -> int:
        """Bytes of records after which a member is written."""
        ...

    def write(self, number: int, records: Sequence[Pending]) -> list[int]:
        """Writes member `number`; returns each record's offset, see `Location`."""
        ...

    def finish(self) -> None:
        """Writes what stands at the end of the file."""
        ...

    def abandon(self) -> None:
        """Lets go of the stream, for a file that is not kept."""
        ...


class HashingStream:
    """A binary stream to write to that counts and hashes what goes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        """Writes to `stream`, which the caller closes."""
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self._is_kept = True
        self.closed = False  # what pyarrow asks of a file

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Writes all of `data`."""
        if not self._is_kept:
            return len(data)
        self._stream.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)
        return len(data)

    def discard(self) -> None:
        """Writes nothing any more: what comes is for a file that is not kept."""
        self._is_kept = False

    def tell(self) -> int:
        """Bytes so far."""
        return self.size_bytes

    def flush(self) -> None:
        """Does nothing: who opened the stream flushes it once, at the end."""

    def close(self) -> None:
        """Does nothing, likewise."""


class TarMembers:
    """Writes a tar file whose bytes depend on the records alone."""

    member_bytes = 2**22

    def __init__(
        self, stream: HashingStream, shard: int, form: ShardForm, records_per_member: int
    ) -> None:
        """Members of one record have names that any WebDataset loader takes for samples."""
        self._stream = stream
        self._shard = shard
        self._form = form
        self._is_single = records_per_member == 1

    def write(self, number: int, records: Sequence[Pending]) -> list[int]:
        """Writes a member, and beside a single record its description."""
        name = f"{self._shard:06d}-{number:06d}" if self._is_single else f"{number:06d}"
        if self._form.content is Content.LC:
            suffix = "lc" if self._is_single else "lcs"
            body, offsets = _concatenated(records)
        else:
            suffix = "safetensors"
            body, offsets = self._tensors(records)
        start = self._write_file(f"{name}.{suffix}", body)
        if self._is_single:
            self._write_file(f"{name}.json", fields.compact(records[0].info.to_json()))
        return [start + offset for offset in offsets]

    def finish(self) -> None:
        """Ends the archive with two empty blocks, as POSIX asks."""
        self._stream.write(bytes(2 * BLOCK_BYTES))

    def abandon(self) -> None:
        """Does nothing: nothing else holds the stream."""

    def _write_file(self, name: str, body: bytes) -> int:
        """Returns where the body begins."""
        header = tarfile.TarInfo(name)
        header.size = len(body)
        self._stream.write(header.tobuf(format=tarfile.USTAR_FORMAT))
        start = self._stream.tell()
        self._stream.write(body)
        self._stream.write(bytes(-len(body) % BLOCK_BYTES))
        return start

    def _tensors(self, records: Sequence[Pending]) -> tuple[bytes, list[int]]:
        """Returns a safetensors file and where each record's numbers lie in it."""
        what = MOMENTS if self._form.posterior else LATENTS
        if self._is_single:
            body = safetensors.numpy.save({what: self._array(records[0])})
            return body, [len(body) - len(records[0].body)]
        groups: dict[str, list[int]] = {}
        for place, record in enumerate(records):
            # Zeros in front: safetensors sorts by name, and so the order is that of the sizes.
            name = "{:07d}x{:07d}".format(*record.grid) + f".{what}"
            groups.setdefault(name, []).append(place)
        body = safetensors.numpy.save(
            {
                name: np.stack([self._array(records[place]) for place in places])
                for name, places in groups.items()
            }
        )
        offsets = [0] * len(records)
        position = len(body) - sum(len(record.body) for record in records)
        for _, places in sorted(groups.items()):
            for place in places:
                offsets[place] = position
                position += len(records[place].body)
        return body, offsets

    def _array(self, record: Pending) -> NDArray[np.floating]:
        return np.frombuffer(record.body, self._form.dtype).reshape(-1, *record.grid)


def _concatenated(records: Sequence[Pending]) -> tuple[bytes, list[int]]:
    ends = np.cumsum([len(record.body) for record in records]).tolist()
    return b"".join(record.body for record in records), [0, *ends[:-1]]
