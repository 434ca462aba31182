"""Parquet files of images, also a Hugging Face dataset as it lies on the hub.

Listing reads columns of labels and captions alone, row group by row group. Images are read forward
in small batches, so neither a row group nor a file is ever held as a whole.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from codec.dataset.files import unreadable
from codec.dataset.handles import Handles
from codec.dataset.items import Item, SourceError, UnreadableError
from codec.dataset.names import readable, relative_name
from codec.dataset.options import SourceOptions
from codec.dataset.tables import Layout, image_bytes, import_arrow, layout_of, row_entry
from codec.shards.records import ItemError

_ROWS_LISTED = 1024
_ROWS_READ = 16  # images that are decoded from Parquet at once
_BUFFER_BYTES = 2**20
_SHARD = re.compile(r"-\d+-of-\d+$")
_SPLITS = {"train", "training", "test", "validation", "valid", "val", "dev", "eval"}


class ParquetSource:
    """The rows of Parquet files, in the order of the files' names.

    Args:
        root: What the files' names are relative to.
        paths: The files.
        options: Columns, and which split.

    Raises:
        SourceError: There are several splits, and none is named.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, root: str, paths: list[str], options: SourceOptions) -> None:
        import_arrow()
        self._root = root
        self._paths = _of_split(root, paths, options.split)
        self._options = options
        self.classes: tuple[str, ...] = ()
        self.ignored: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source."""
        name = readable(os.path.basename(self._root))
        return {"kind": "parquet", "name": name, "files": len(self._paths)} | self._options.given()

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the rows in order; a file that cannot be read is an error of its own.

        Raises:
            SourceError: A file lacks a column that is wanted.
        """
        arrow = import_arrow()
        for path in self._paths:
            name = readable(relative_name(path, self._root))
            try:
                yield from self._rows(arrow.parquet, path, name)
            except FileNotFoundError as error:
                yield ItemError(name, name, unreadable(name, error))
            except (arrow.ArrowException, OSError) as error:
                found = " ".join(str(error).split())
                yield ItemError(
                    name, name, f"{name} is not a complete Parquet file ({found}): copy it again"
                )

    def _rows(self, parquet: Any, path: str, name: str) -> Iterator[Item | ItemError]:
        status = os.stat(path)
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
        with parquet.ParquetFile(path) as file:
            layout = layout_of(file.schema_arrow, self._options, name)
            self.classes = self.classes or layout.classes
            number = 0
            for group in range(file.num_row_groups):
                for row, values in enumerate(_listed_rows(file, group, layout)):
                    place = {"kind": "parquet", "path": path, "group": group, "row": row}
                    yield row_entry(values, layout, place, f"{name}#{number}", stamp)
                    number += 1


def read_parquet(locator: Mapping[str, Any], source: str) -> bytes:
    """Returns the bytes of an image in a row; quick for rows that follow one another.

    Raises:
        UnreadableError: The file is gone or damaged, or the row holds no image.
    """
    arrow = import_arrow()
    try:
        with _readers.use(locator["path"]) as reader:
            value = reader.cell(locator["group"], locator["row"], locator["column"])
    except FileNotFoundError as error:
        raise UnreadableError(unreadable(source, error)) from error
    except (arrow.ArrowException, OSError) as error:
        found = " ".join(str(error).split())
        raise UnreadableError(
            f"{source} cannot be read from its Parquet file ({found}): copy the file again"
        ) from error
    return image_bytes(value, locator, source)


class _Reader:
    """An open file and the batch of rows that was read last."""

    def __init__(self, path: str) -> None:
        # Without the buffer size a whole column of a row group would be read at once.
        self._file = import_arrow().parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER_BYTES
        )
        self._place: tuple[int, str] | None = None
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._start = 0  # of the batch, in rows of its group

    def cell(self, group: int, row: int, column: str) -> Any:
        """Returns one value; earlier rows than the last are found from the group's first on."""
        if self._place != (group, column) or row < self._start:
            self._batches = self._file.iter_batches(
                _ROWS_READ, row_groups=[group], columns=[column], use_threads=False
            )
            self._place, self._batch, self._start = (group, column), next(self._batches), 0
        while row >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows
            self._batch = next(self._batches)
        return self._batch.column(0)[row - self._start].as_py()

    def close(self) -> None:
        """Closes the file."""
        self._place, self._batches, self._batch = None, iter(()), None
        self._file.close()


_readers = Handles(_Reader)


def _listed_rows(file: Any, group: int, layout: Layout) -> Iterator[Mapping[str, Any]]:
    columns = layout.listed()
    if not columns:
        for _ in range(file.metadata.row_group(group).num_rows):
            yield {}
        return
    for batch in file.iter_batches(
        _ROWS_LISTED, row_groups=[group], columns=columns, use_threads=False
    ):
        yield from batch.to_pylist()


def _of_split(root: str, paths: list[str], split: str | None) -> list[str]:
    """The files of a split, which stands in their names: data/train-00000-of-00002.parquet."""
    found = {path: _split_of(relative_name(path, root)) for path in paths}
    splits = sorted({one for one in found.values() if one is not None})
    if split == "all" or (split is None and len(splits) < 2):
        return paths
    chosen = [path for path, one in found.items() if one == split]
    if not chosen:
        what = "several splits" if split is None else f"no split {split!r}"
        raise SourceError(
            f"found {what} in {root}, which has {', '.join(splits) or 'none'}: name one with "
            "--split, or take all with --split all"
        )
    return chosen


def _split_of(name: str) -> str | None:
    for part in reversed(name.removesuffix(".parquet").split("/")):
        base = _SHARD.sub("", part)
        if base != part or base.lower() in _SPLITS:
            return base
    return None
