"""Rows of manifests and tables: what one says of its image, and the file that it may name."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from codec.dataset.columns import Columns
from codec.dataset.files import file_item, is_remote, remote_error
from codec.dataset.items import Item, UnreadableError
from codec.dataset.names import readable, relative_name
from codec.dataset.sidecars import Description, caption_text, label_text
from codec.shards.records import ItemError

Row = Mapping[str, Any]


def describe_row(
    row: Row, columns: Columns, classes: Sequence[str] = ()
) -> tuple[Description, str | None]:
    """Returns what a row says of its image, and its key where a column has it.

    Args:
        row: Values by column.
        columns: Which to look at.
        classes: Names of the classes that the labels number; a negative number is no label.

    Raises:
        UnreadableError: A value is of another type or out of range, or the key is missing.
    """
    label = row[columns.label] if columns.label else None
    caption = row[columns.caption] if columns.caption else None
    if classes and isinstance(label, int):
        if label >= len(classes):
            raise UnreadableError(f"found the label {label}, expected one below {len(classes)}")
        label = classes[label] if label >= 0 else None
    key = None
    if columns.key is not None:
        key = label_text(row[columns.key], "key")
        if key is None:
            raise UnreadableError(f"found no key in the column {columns.key!r}")
    return Description(label_text(label), caption_text(caption)), key


def file_row(row: Row, columns: Columns, root: str, place: str, name: str) -> Item | ItemError:
    """Returns the item of a row that names an image file.

    Args:
        row: Values by column.
        columns: Which to look at.
        root: What paths are relative to.
        place: How messages call the row: "line 3 of list.csv".
        name: What its error is called where no file is named.
    """
    path = row[columns.image]
    if not isinstance(path, str) or not path:
        return ItemError(name, name, f"{place} has no path of an image in {columns.image!r}")
    if is_remote(path):
        return remote_error(path)
    source = relative_name(path, root)
    try:
        described, key = describe_row(row, columns)
    except UnreadableError as error:
        shown = readable(source)
        return ItemError(shown, shown, f"{error}, in {place}")
    return file_item(os.path.join(root, path), source, described, key)
