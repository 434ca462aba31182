"""Hugging Face datasets as `save_to_disk` leaves them: Arrow files that are mapped, not read."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codec.dataset.files import unreadable
from codec.dataset.handles import Handles
from codec.dataset.items import Item, SourceError, UnreadableError
from codec.dataset.names import readable, relative_name
from codec.dataset.options import SourceOptions
from codec.dataset.tables import image_bytes, import_arrow, layout_of, row_entry
from codec.shards.records import ItemError

STATE_FILE = "state.json"  # of a dataset
DICT_FILE = "dataset_dict.json"  # of several splits

_IPC_FILE_MAGIC = b"ARROW1"


class SavedSource:
    """The rows of a saved dataset, in order.

    Args:
        place: The folder of `save_to_disk`, of one dataset or of several splits.
        options: Columns, and which split.

    Raises:
        SourceError: The folder is incomplete, or has several splits and none is named.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, place: str, options: SourceOptions) -> None:
        import_arrow()
        self._root = os.path.abspath(place)
        self._options = options
        folders = _folders(Path(self._root), options.split)
        self._paths = [path for folder in folders for path in _data_files(folder)]
        self.classes: tuple[str, ...] = ()
        self.ignored: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source."""
        name = readable(os.path.basename(self._root))
        return {"kind": "huggingface", "name": name, "files": len(self._paths)} | (
            self._options.given()
        )

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the rows in order; a file that cannot be read is an error of its own.

        Raises:
            SourceError: A file lacks a column that is wanted.
        """
        arrow = import_arrow()
        for path in self._paths:
            name = readable(relative_name(path, self._root))
            try:
                yield from self._rows(path, name)
            except FileNotFoundError as error:
                yield ItemError(name, name, unreadable(name, error))
            except (arrow.ArrowException, OSError) as error:
                found = " ".join(str(error).split())
                yield ItemError(
                    name, name, f"{name} is not a complete Arrow file ({found}): save it again"
                )

    def _rows(self, path: str, name: str) -> Iterator[Item | ItemError]:
        status = os.stat(path)
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
        with import_arrow().memory_map(path) as mapped:
            schema, batches = _open_batches(mapped)
            layout = layout_of(schema, self._options, name)
            self.classes = self.classes or layout.classes
            columns, number = layout.listed(), 0
            for batch in batches:
                rows = batch.select(columns).to_pylist() if columns else [{}] * batch.num_rows
                for values in rows:
                    place = {"kind": "arrow", "path": path, "row": number}
                    yield row_entry(values, layout, place, f"{name}#{number}", stamp)
                    number += 1


def read_saved(locator: Mapping[str, Any], source: str) -> bytes:
    """Returns the bytes of an image in a row.

    Raises:
        UnreadableError: The file is gone or damaged, or the row holds no image.
    """
    arrow = import_arrow()
    try:
        with _tables.use(locator["path"]) as table:
            value = table.cell(locator["row"], locator["column"])
    except FileNotFoundError as error:
        raise UnreadableError(unreadable(source, error)) from error
    except (arrow.ArrowException, OSError, IndexError) as error:
        found = " ".join(str(error).split())
        raise UnreadableError(
            f"{source} cannot be read from its Arrow file ({found}): save the dataset again"
        ) from error
    return image_bytes(value, locator, source)


class _Table:
    """A mapped file; its columns are views of the map."""

    def __init__(self, path: str) -> None:
        self._mapped = import_arrow().memory_map(path)
        schema, batches = _open_batches(self._mapped)
        self._table = import_arrow().Table.from_batches(list(batches), schema)

    def cell(self, row: int, column: str) -> Any:
        """Returns one value."""
        return self._table.column(column)[row].as_py()

    def close(self) -> None:
        """Lets go of the map; values that are in use keep it."""
        self._table = None
        self._mapped.close()


_tables = Handles(_Table)


def _open_batches(mapped: Any) -> tuple[Any, Iterator[Any]]:
    """The schema and the record batches of an Arrow file of either form."""
    arrow = import_arrow()
    magic = mapped.read(len(_IPC_FILE_MAGIC))
    mapped.seek(0)
    if magic != _IPC_FILE_MAGIC:
        reader = arrow.ipc.open_stream(mapped)
        return reader.schema, iter(reader)
    file = arrow.ipc.open_file(mapped)
    return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


def _folders(root: Path, split: str | None) -> list[Path]:
    """The folders of the wanted splits."""
    if not (root / DICT_FILE).is_file():
        if split in (None, "all"):
            return [root]
        raise SourceError(f"found no splits in {root}, which is one dataset: leave out --split")
    splits = _read_json(root / DICT_FILE).get("splits")
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    if split == "all" or (split is None and len(names) == 1):
        return [root / name for name in names]
    if split not in names:
        what = "several splits" if split is None else f"no split {split!r}"
        raise SourceError(
            f"found {what} in {root}, which has {', '.join(names) or 'none'}: name one with "
            "--split, or take all with --split all"
        )
    return [root / split]


def _data_files(folder: Path) -> list[str]:
    state = _read_json(folder / STATE_FILE)
    if state.get("_indices_data_files"):
        raise SourceError(
            f"{folder} was saved by an old release of datasets, with a selection of rows beside "
            "them: load it, and save it again with save_to_disk"
        )
    files = state.get("_data_files")
    names = [one.get("filename") for one in files] if isinstance(files, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{folder / STATE_FILE} names no data files: save the dataset again")
    return [str(folder / os.path.basename(name)) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read ({error}): save the dataset again") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} is not what save_to_disk writes: save the dataset again")
    return content
