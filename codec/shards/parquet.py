"""Shards as Parquet files: what the index says too, and the latents, as columns.

Raw latents are lists of lists of lists of numbers, (C, h, w), so that `datasets.load_dataset` and
pandas give arrays; `.lc` files are binary. Pages are compressed as a whole, for the lengths of
nested lists repeat and would weigh a tenth of small latents otherwise.
"""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.console import needs_extra
from codec.shards.errors import ShardError
from codec.shards.forms import Content, ShardForm
from codec.shards.index import Location
from codec.shards.members import HashingStream, Pending

with needs_extra("dataset", {"pyarrow"}):
    import pyarrow as pa
    import pyarrow.parquet as pq

LC, LATENTS, LOG_VARIANCE = "lc", "latents", "log_variance"
MAX_GROUP_BYTES = 2**30  # of all pages of a row group, uncompressed
MAX_GROUP_ROWS = 2**16

_INFO_FIELDS = [
    pa.field("key", pa.string()),
    pa.field("source", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("crop", pa.list_(pa.int32())),
    pa.field("size", pa.list_(pa.int32())),
    pa.field("flip", pa.bool_()),
    pa.field("label", pa.string()),
    pa.field("caption", pa.string()),
]


class ParquetGroups:
    """Writes a Parquet file, a row group at a time."""

    member_bytes = 2**20  # readers take a row group as a whole, and several at once

    def __init__(self, stream: HashingStream, form: ShardForm) -> None:
        """Writes to `stream`, which the caller closes."""
        self._stream = stream
        self._form = form
        self._schema = _schema(form)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(stream, mode="w"),
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["source", "label"],
            write_statistics=False,
        )

    def write(self, number: int, records: Sequence[Pending]) -> list[int]:
        """Writes a row group; the offset of a record is its row there."""
        del number  # row groups have no names
        infos = [record.info for record in records]
        columns: list[Any] = [
            [_text(info.key) for info in infos],
            [_text(info.source) for info in infos],
            [info.width for info in infos],
            [info.height for info in infos],
            [list(info.crop) for info in infos],
            [list(info.size) for info in infos],
            [info.flip for info in infos],
            [_text(info.label) for info in infos],
            [_text(info.caption) for info in infos],
        ]
        if self._form.content is Content.LC:
            columns.append([record.body for record in records])
        else:
            arrays = [
                np.frombuffer(record.body, self._form.dtype).reshape(-1, *record.grid)
                for record in records
            ]
            parts = 2 if self._form.posterior else 1
            split = [np.split(array, parts) for array in arrays]
            columns += [_nested([halves[part] for halves in split]) for part in range(parts)]
        typed = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        table = pa.Table.from_arrays(typed, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(records))
        return list(range(len(records)))

    def finish(self) -> None:
        """Writes the footer."""
        self._writer.close()

    def abandon(self) -> None:
        """Closes pyarrow's writer, which would else write when it is collected."""
        self._stream.discard()
        with suppress(pa.ArrowException, OSError):
            self._writer.close()


class ParquetBodies:
    """Reads records' bytes out of a Parquet file, as they were given to the writer."""

    def __init__(self, path: Path, form: ShardForm, *, keep: bool = False) -> None:
        """Opens the file.

        Args:
            path: Of the file.
            form: Of the dataset.
            keep: Keep all row groups in memory until `forget`, not only the one that was read last.

        Raises:
            ShardError: It is no Parquet file, or has other columns than the form asks for.
            OSError: It is missing or cannot be read.
        """
        self._path = path
        self._form = form
        self._columns = _payload_columns(form)
        path.open("rb").close()  # pyarrow calls damage an OSError too
        try:
            self._file = pq.ParquetFile(path)
            schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damage(error) from None
        for name in self._columns:
            expected = _schema(form).field(name).type
            if name not in schema.names or schema.field(name).type != expected:
                self._file.close()
                raise ShardError(
                    f"{path}: found no column {name!r} of type {expected}, expected it there; "
                    "write the shard again"
                )
        self._keep = keep
        self._groups: dict[int, list[list[bytes]]] = {}

    def body(self, location: Location) -> bytes:
        """Returns the bytes of a record; with a posterior the mode's and the log variance's.

        Raises:
            ShardError: The row group is damaged, not there, or larger than is read.
        """
        if location.member not in self._groups:
            if not self._keep:
                self.forget()
            self._groups[location.member] = self._read(location.member)
        columns = self._groups[location.member]
        if location.offset >= len(columns[0]):
            raise ShardError(
                f"{self._path}: found {len(columns[0])} rows in row group {location.member}, "
                f"expected more than {location.offset}; write the shard again"
            )
        return b"".join(column[location.offset] for column in columns)

    def forget(self) -> None:
        """Gives back the memory of row groups."""
        self._groups.clear()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self.forget()

    def _read(self, group: int) -> list[list[bytes]]:
        metadata = self._file.metadata
        if group >= metadata.num_row_groups:
            raise ShardError(
                f"{self._path}: found {metadata.num_row_groups} row groups, expected more than "
                f"{group}; write the shard again"
            )
        size, rows = metadata.row_group(group).total_byte_size, metadata.row_group(group).num_rows
        if not (0 <= size <= MAX_GROUP_BYTES and rows <= MAX_GROUP_ROWS):
            raise ShardError(
                f"{self._path}: found a row group of {size} bytes and {rows} rows, expected at "
                f"most {MAX_GROUP_BYTES} and {MAX_GROUP_ROWS}; write the shard again"
            )
        try:
            table = self._file.read_row_group(group, columns=self._columns, use_threads=False)
            columns = [table.column(name).combine_chunks() for name in self._columns]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damage(error) from None
        if self._form.content is Content.LC:
            return [column.to_pylist() for column in columns]
        return [_rows(column, self._form.dtype) for column in columns]

    def _damage(self, error: BaseException) -> ShardError:
        reason = " ".join(str(error).split())[:200]
        return ShardError(
            f"{self._path}: found damage in the Parquet file ({reason}); copy it again, or write "
            "the shard again"
        )


def _payload_columns(form: ShardForm) -> list[str]:
    if form.content is Content.LC:
        return [LC]
    return [LATENTS, LOG_VARIANCE] if form.posterior else [LATENTS]


def _schema(form: ShardForm) -> Any:
    kind = pa.binary()
    if form.content is not Content.LC:
        number = pa.float16() if form.content is Content.FLOAT16 else pa.float32()
        kind = pa.list_(pa.list_(pa.list_(number)))
    return pa.schema([*_INFO_FIELDS, *(pa.field(name, kind) for name in _payload_columns(form))])


def _nested(arrays: Sequence[NDArray[Any]]) -> Any:
    """Returns arrays (C, h, w) as one column of lists of lists of lists."""
    values = pa.array(np.concatenate([array.ravel() for array in arrays]))
    widths = np.concatenate([np.full(a.shape[0] * a.shape[1], a.shape[2]) for a in arrays])
    heights = np.concatenate([np.full(a.shape[0], a.shape[1]) for a in arrays])
    channels = np.array([a.shape[0] for a in arrays])
    for lengths in (widths, heights, channels):
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values


def _rows(column: Any, dtype: np.dtype[Any]) -> list[bytes]:
    """Returns the numbers of each row of a column of lists of lists of lists."""
    ends = column.offsets.to_numpy()
    values = column.values
    for _ in range(2):  # from rows down to the numbers
        ends, values = values.offsets.to_numpy()[ends], values.values
    numbers = values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return [numbers[start:stop].tobytes() for start, stop in itertools.pairwise(ends)]


def _text(value: str | None) -> str | None:
    """Returns a text as UTF-8 can hold it: file names may have bytes that are no characters."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode("utf-8")
