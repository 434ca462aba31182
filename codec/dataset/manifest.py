"""A CSV, TSV or JSONL manifest: a column of paths, and of labels, captions and keys."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from codec.dataset.columns import Columns
from codec.dataset.items import Item, SourceError
from codec.dataset.names import readable
from codec.dataset.options import SourceOptions
from codec.dataset.rows import Row, file_row
from codec.shards.records import ItemError

JSON_SUFFIXES = (".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv", ".tsv")

_LONGEST_LINE = 2**24  # bytes of JSON


class ManifestSource:
    """The images that the lines of a manifest name, in its order.

    Paths are relative to the file. A line that cannot be read is an error of its own, and the
    others go on.
    """

    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __init__(self, path: str, options: SourceOptions) -> None:
        self._path = os.path.abspath(path)
        self._name = readable(os.path.basename(path))
        self._options = options
        self.ignored: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source."""
        return {"kind": "manifest", "name": self._name, **self._options.given()}

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the images in order.

        Raises:
            SourceError: The file cannot be read, or lacks a column that was named.
        """
        is_json = self._path.lower().endswith(JSON_SUFFIXES)
        try:
            yield from self._json_items() if is_json else self._csv_items()
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read ({error.strerror})") from error

    def _csv_items(self) -> Iterator[Item | ItemError]:
        delimiter = "\t" if self._path.lower().endswith(".tsv") else ","
        # A file's name is bytes, so those that are not UTF-8 are kept, not refused.
        with open(self._path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            lines = csv.reader(stream, delimiter=delimiter)
            names = next(lines, None)
            if not names:
                raise SourceError(f"{self._path} is empty: expected a line of column names")
            columns = Columns.choose(names, self._options, self._name)
            while True:
                try:
                    fields = next(lines)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield self._bad_line(lines.line_num, f"is malformed ({error})")
                    continue
                if len(fields) == len(names):
                    yield self._item(dict(zip(names, fields, strict=True)), lines.line_num, columns)
                elif fields:
                    found = f"has {len(fields)} fields, expected {len(names)} as the first line has"
                    yield self._bad_line(lines.line_num, found)

    def _json_items(self) -> Iterator[Item | ItemError]:
        """Lines of JSON need not have the same fields, so each is looked at by itself."""
        missing = dict.fromkeys(self._options.named_columns())
        with open(self._path, "rb") as stream:
            for number, line in enumerate(iter(partial(stream.readline, _LONGEST_LINE), b""), 1):
                if not line.strip():
                    continue
                try:
                    row = _parse(line)
                    columns = Columns.choose(row, self._options, "it", all_named=False)
                except (SourceError, ValueError, RecursionError) as error:
                    yield self._bad_line(number, f"cannot be used ({error})")
                    continue
                for name in row.keys() & missing.keys():
                    del missing[name]
                yield self._item(row, number, columns)
        if missing:
            raise SourceError(
                f"no line of {self._path} has the field {next(iter(missing))!r}: correct its name"
            )

    def _item(self, row: Row, number: int, columns: Columns) -> Item | ItemError:
        root, place = os.path.dirname(self._path), f"line {number} of {self._name}"
        return file_row(row, columns, root, place, f"{self._name}#{number}")

    def _bad_line(self, number: int, found: str) -> ItemError:
        key = f"{self._name}#{number}"
        return ItemError(key, key, f"line {number} of {self._name} {found}")


def _parse(line: bytes) -> dict[str, Any]:
    row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    return row
