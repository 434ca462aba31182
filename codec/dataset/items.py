"""What a source lists: one `Item` an image, as plain data that names the image and opens nothing.

Items travel to worker processes and lie in plan files, a line of JSON each. The lines are ASCII, so
that a name of any bytes comes back exactly.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from codec.errors import LatentCodecError
from codec.shards.records import ItemError


class SourceError(LatentCodecError):
    """The source as a whole cannot be used."""


class UnreadableError(LatentCodecError):
    """One image of a source cannot be read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Item:
    """One source image.

    Attributes:
        key: Its name in the dataset, unique there; printable in UTF-8.
        source: Where it lies: a path relative to the source's root, TAR/STEM or FILE#ROW.
        locator: How `read_item` finds its bytes: "kind", and what that kind needs.
        label: The class it is of.
        caption: The text that describes it.
        stamp: What changes when the bytes behind it do: sizes and times of files.
    """

    key: str
    source: str
    locator: Mapping[str, Any]
    label: str | None = None
    caption: str | None = None
    stamp: str = ""


def entry_to_line(entry: Item | ItemError) -> str:
    """Returns one line of ASCII JSON, without its end."""
    if isinstance(entry, ItemError):
        fields = {"key": entry.key, "source": entry.source, "reason": entry.reason}
    else:
        fields = {name: getattr(entry, name) for name in Item.__slots__}
        fields = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(fields, separators=(",", ":"))


def entry_from_line(line: str | bytes) -> Item | ItemError:
    """Reads what `entry_to_line` wrote; other lines raise ValueError, KeyError or TypeError."""
    fields = json.loads(line)
    if "reason" in fields:
        return ItemError(**fields)
    return Item(**fields)


def identity(entry: Item | ItemError) -> str:
    """Returns what decides an entry's records, as a line of JSON: all but the place of files.

    Of an error it is the key and the source: the reason may depend on the system.
    """
    if isinstance(entry, ItemError):
        return json.dumps([entry.key, entry.source])
    return json.dumps([entry.key, entry.source, entry.label, entry.caption, entry.stamp])


class Source(Protocol):
    """Images to encode, listed one after another in an order that never changes.

    Attributes:
        notes: Sentences for the user about what will not be read.
        classes: Names of the classes in the source's own order, where it states one; else empty.
        ignored: How many files were passed over by the last `iter_items`, by their ending.
    """

    notes: tuple[str, ...]
    classes: tuple[str, ...]
    ignored: Counter[str]

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source: kind, name, and what was asked of it.

        It names no place of this machine, so it stays the same where the source is moved.
        """

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the source's images in order, as a stream, without reading any of them."""
