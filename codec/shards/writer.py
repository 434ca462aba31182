"""ShardWriter: the records of one unit of work to a shard and its index, both or neither."""

import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content, LatentData, ShardForm
from codec.shards.index import IndexedRecord, Location, ShardHeader, write_index
from codec.shards.layout import (
    check_shard_number,
    discard,
    index_name,
    publish,
    shard_name,
    temporary_path,
)
from codec.shards.members import HashingStream, MemberWriter, Pending, TarMembers
from codec.shards.records import ItemError, RecordInfo
from codec.shards.statistics import LatentStatistics

RECORDS_PER_MEMBER = 256


class ShardWriter:
    """Writes one shard.

        with ShardWriter(directory, 0, ShardForm()) as writer:
            writer.add(info, data)
            writer.commit(errors)

    Leaving without `commit` leaves nothing. The same records give the same bytes.
    """

    def __init__(
        self,
        directory: Path,
        shard: int,
        form: ShardForm,
        *,
        records_per_member: int = RECORDS_PER_MEMBER,
    ) -> None:
        """Opens a temporary file in `directory`, which must exist.

        Args:
            directory: Of the dataset.
            shard: Number of the shard. One that is there already is replaced by `commit`.
            form: Of all shards of the dataset.
            records_per_member: Most records of a tar member or Parquet row group; 1 makes tars
                that any WebDataset loader reads, at two tar headers a record.

        Raises:
            ShardError: The number is out of range.
            MissingExtraError: Parquet needs packages that are not there.
            OSError: The file cannot be made.
        """
        check_shard_number(shard)
        if records_per_member < 1:
            raise ShardError(f"found {records_per_member} records a member, expected 1 or more")
        self._directory = directory
        self._shard = shard
        self._form = form
        self._most = records_per_member
        self._target = directory / shard_name(shard, form.container)
        self._temporary = temporary_path(self._target)
        self._file = self._temporary.open("xb")
        self._stream = HashingStream(self._file)
        self._is_open = True
        try:
            self._members = self._open_members()
        except BaseException:
            discard(self._file, self._temporary)
            raise
        self._pending: list[Pending] = []
        self._pending_bytes = 0
        self._num_members = 0
        self._lines: list[bytes] = []
        self._keys: set[str] = set()
        self._sources: set[str] = set()
        self._grids: Counter[tuple[int, int]] = Counter()
        self._labels: Counter[str] = Counter()
        self._num_captions = 0
        self._payload_bytes = 0
        self._statistics = LatentStatistics()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_open:
            self._abandon()

    @property
    def is_open(self) -> bool:
        """Whether records can be added: neither committed nor abandoned."""
        return self._is_open

    def add(self, info: RecordInfo, data: LatentData) -> None:
        """Adds a record.

        Raises:
            ShardError: Its key is there already, its latents are not finite or do not fit the
                content, or a part that the form asks for is missing. The shard stays as it was.
            OSError: The disk is full, or does not take more; then the shard is abandoned.
        """
        assert self._is_open, "the shard is committed or abandoned"
        if info.key in self._keys:
            raise ShardError(f"found the key {info.key!r} twice, expected each key once")
        body, latents = self._body(info, data)
        grid = (int(latents.shape[1]), int(latents.shape[2]))
        statistics = self._statistics + LatentStatistics.of(latents)
        self._statistics = statistics
        self._keys.add(info.key)
        self._sources.add(info.source)
        self._grids[grid] += 1
        if info.label is not None:
            self._labels[info.label] += 1
        self._num_captions += info.caption is not None
        self._payload_bytes += len(body)
        self._pending.append(Pending(info, body, grid))
        self._pending_bytes += len(body)
        if len(self._pending) >= self._most or self._pending_bytes >= self._members.member_bytes:
            try:
                self._write_pending()
            except BaseException:
                self._abandon()
                raise

    def commit(self, errors: Sequence[ItemError] = ()) -> ShardHeader:
        """Makes the shard and its index appear, both safe on the disk when it returns.

        Args:
            errors: Sources of this unit of work that gave no record, in their order.

        Raises:
            ShardError: A caption or label is longer than an index holds.
            OSError: The disk is full, or does not take the files; then the shard has no index.
        """
        assert self._is_open, "the shard is committed or abandoned"
        try:
            self._write_pending()
            self._members.finish()
            header = self._header(len(errors))
            publish(self._file, self._temporary, self._target)
            write_index(self._directory / index_name(self._shard), header, self._lines, errors)
        except BaseException:
            self._abandon()
            raise
        self._is_open = False
        return header

    def _open_members(self) -> MemberWriter:
        if self._form.container is Container.TAR:
            return TarMembers(self._stream, self._shard, self._form, self._most)
        from codec.shards.parquet import ParquetGroups

        return ParquetGroups(self._stream, self._form)

    def _body(self, info: RecordInfo, data: LatentData) -> tuple[bytes, NDArray[np.float32]]:
        """Returns the bytes to write, and the latents that a reader will get from them."""
        form, latents = self._form, data.raw_latents
        if latents.ndim != 3 or 0 in latents.shape:
            raise ShardError(
                f"{info.key}: found latents of shape {latents.shape}, expected (C, h, w)"
            )
        parts = [latents]
        if form.posterior:
            if data.log_variance is None or data.log_variance.shape != latents.shape:
                raise ShardError(f"{info.key}: found no log variance of the latents' shape")
            parts.append(data.log_variance)
        with np.errstate(over="ignore"):  # is told in a sentence below
            stored = np.concatenate(parts).astype(form.dtype)
        if not np.isfinite(stored).all():
            largest = float(np.abs(np.concatenate(parts), dtype=np.float64).max())
            raise ShardError(
                f"{info.key}: found latents up to {largest:.3g}, expected finite ones that "
                f"{form.dtype.name} holds; use float32, or another dtype if the model overflowed"
            )
        if form.content is Content.LC:
            if not data.payload:
                raise ShardError(f"{info.key}: found no .lc file, expected one for this content")
            return data.payload, latents
        return stored.tobytes(), stored[: len(latents)].astype(np.float32)

    def _write_pending(self) -> None:
        if not self._pending:
            return
        offsets = self._members.write(self._num_members, self._pending)
        for record, offset in zip(self._pending, offsets, strict=True):
            body = record.body
            location = Location(self._num_members, offset, len(body), zlib.crc32(body), record.grid)
            self._lines.append(IndexedRecord(record.info, location).to_line())
        self._num_members += 1
        self._pending.clear()
        self._pending_bytes = 0

    def _header(self, num_errors: int) -> ShardHeader:
        return ShardHeader(
            shard=self._shard,
            form=self._form,
            size_bytes=self._stream.size_bytes,
            sha256=self._stream.sha256,
            payload_bytes=self._payload_bytes,
            num_images=len(self._sources),
            num_records=len(self._lines),
            num_errors=num_errors,
            num_captions=self._num_captions,
            channels=self._statistics.num_channels,
            grids=dict(self._grids),
            labels=dict(self._labels),
            statistics=self._statistics,
        )

    def _abandon(self) -> None:
        self._is_open = False
        self._members.abandon()
        discard(self._file, self._temporary)
