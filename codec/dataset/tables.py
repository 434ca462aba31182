"""What Parquet and Arrow files of images have in common: columns, labels, images in rows.

pyarrow is imported late: without it a command says how to install it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codec.console import needs_extra
from codec.dataset.columns import PATH_NAMES, Columns
from codec.dataset.files import check_size, read_file
from codec.dataset.items import Item, SourceError, UnreadableError
from codec.dataset.names import readable
from codec.dataset.options import SourceOptions
from codec.dataset.rows import Row, describe_row, file_row
from codec.shards.records import ItemError

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "image_bytes")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of one table are read.

    Attributes:
        columns: Their names.
        names_files: Whether the image column holds paths instead of encoded images.
        classes: Names of the classes by number, where the schema has them.
    """

    columns: Columns
    names_files: bool
    classes: tuple[str, ...]

    def listed(self) -> list[str]:
        """Returns the columns that listing reads: all that are wanted but encoded images."""
        names = [self.columns.label, self.columns.caption, self.columns.key]
        if self.names_files:
            names.append(self.columns.image)
        return list(dict.fromkeys(name for name in names if name is not None))


def import_arrow() -> Any:
    """Returns the pyarrow module with its Parquet reader.

    Raises:
        MissingExtraError: It is not installed.
    """
    with needs_extra("dataset", ["pyarrow"]):
        import pyarrow.parquet

        return pyarrow


def layout_of(schema: "pa.Schema", options: SourceOptions, name: str) -> Layout:
    """Chooses the columns of a table, by Hugging Face's description of them where there is one.

    Raises:
        SourceError: A named column is missing, or there is none of encoded images or paths.
    """
    features = {one: kind for one, kind in _features(schema).items() if one in schema.names}
    stated = [one for one, kind in features.items() if kind.get("_type") == "Image"]
    labels = [one for one, kind in features.items() if kind.get("_type") == "ClassLabel"]
    encoded = [one for one in schema.names if _holds_images(schema.field(one).type)]
    usual = [one for one in _IMAGE_NAMES if one in encoded]
    columns = Columns.choose(
        schema.names,
        options,
        name,
        image_names=[*stated, *usual, *encoded, *PATH_NAMES],
        label_names=labels,
    )
    kind = schema.field(columns.image).type
    names_files = str(kind) in ("string", "large_string", "string_view")
    if not names_files and columns.image not in encoded:
        raise SourceError(
            f"the column {columns.image!r} of {name} holds {kind}: expected encoded images, as "
            "bytes or as a struct of bytes and path, or paths of files; name it with --image-column"
        )
    classes = features.get(columns.label or "", {}).get("names") or ()
    return Layout(columns, names_files, tuple(readable(str(one)) for one in classes))


def row_entry(
    row: Row, layout: Layout, place: Mapping[str, Any], source: str, stamp: str
) -> Item | ItemError:
    """Returns the item of a row.

    Args:
        row: The values of `Layout.listed`.
        layout: Of its table.
        place: The locator of its image.
        source: FILE#ROW.
        stamp: Of the table's file.
    """
    if layout.names_files:
        root = os.path.dirname(place["path"])
        return file_row(row, layout.columns, root, source, source)
    try:
        described, key = describe_row(row, layout.columns, layout.classes)
    except UnreadableError as error:
        return ItemError(source, source, f"{error}, in {source}")
    locator = {**place, "column": layout.columns.image}
    key = source if key is None else key
    return Item(key, source, locator, described.label, described.caption, stamp)


def image_bytes(value: Any, locator: Mapping[str, Any], source: str) -> bytes:
    """Returns the encoded image in a cell: bytes, or a mapping with bytes or else a path.

    Raises:
        UnreadableError: It is null, or names a file that cannot be read.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is not None:
        check_size(len(content), source)
        return bytes(content)
    path = value.get("path") if isinstance(value, dict) else None
    if not path:
        raise UnreadableError(f"{source} is null: expected an image in {locator['column']!r}")
    return read_file({"path": os.path.join(os.path.dirname(locator["path"]), path)}, source)


def _features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """Hugging Face's types of columns, which stand in the schema's metadata as JSON."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        features = described["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: one for name, one in features.items() if isinstance(one, dict)}


def _holds_images(kind: "pa.DataType") -> bool:
    types = import_arrow().types
    if types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return any(
            field.name == "bytes" and (types.is_null(field.type) or _holds_images(field.type))
            for field in fields
        )
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))
