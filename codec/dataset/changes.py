"""What changed between two plans, in words and without holding either in memory."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from codec.dataset.items import Item, identity
from codec.shards.records import ItemError

# The fields of an item's identity, see `codec.dataset.items.identity`.
_FIELDS = ("key", "source", "label", "caption", "size or time of change")


class _Tally:
    """How many there were, and what the first was."""

    def __init__(self, one: str, many: str) -> None:
        self._words = (one, many)
        self._count = 0
        self._first = ""

    def add(self, first: str, detail: str = "") -> None:
        if not self._count:
            self._first = f"{first!r}{detail}"
        self._count += 1

    def __str__(self) -> str:
        if not self._count:
            return ""
        word = self._words[self._count > 1]
        return f"{self._count} {word} ({'first ' if self._count > 1 else ''}{self._first})"


def what_changed(
    old: Iterator[Item | ItemError], new: Iterator[Item | ItemError], database: Path
) -> str:
    """Returns a clause such as "2 images were added (first 'cats/7.jpg')".

    Args:
        old: The entries of the job's plan.
        new: Those of the source as it is now.
        database: Where a file may be made meanwhile.
    """
    added = _Tally("image was added", "images were added")
    removed = _Tally("image was removed", "images were removed")
    changed = _Tally("image has changed", "images have changed")
    database.unlink(missing_ok=True)
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE old (name TEXT PRIMARY KEY, place INTEGER, identity TEXT)")
        connection.execute("BEGIN")
        rows = ((_name(entry), place, identity(entry)) for place, entry in enumerate(old))
        connection.executemany("INSERT OR REPLACE INTO old VALUES (?, ?, ?)", rows)
        moved = None
        for place, entry in enumerate(new):
            found = connection.execute(
                "DELETE FROM old WHERE name = ? RETURNING place, identity", (_name(entry),)
            ).fetchone()
            if found is None:
                if isinstance(entry, Item):
                    added.add(entry.key)
            elif found[1] != identity(entry):
                changed.add(entry.key, _which(found[1], identity(entry)))
            elif found[0] != place and moved is None:
                moved = f"the order has changed (first {entry.key!r})"
        for name, text in connection.execute("SELECT name, identity FROM old ORDER BY place"):
            key = json.loads(text)[0]
            if name == key:  # no error
                removed.add(key)
    finally:
        connection.close()
        database.unlink(missing_ok=True)
    parts = [text for text in map(str, (added, removed, changed)) if text]
    return ", ".join(parts) or moved or "its list of errors has changed"


def _name(entry: Item | ItemError) -> str:
    """What tells entries apart; errors may share a key with an item and among themselves."""
    return f"{entry.key}\0{entry.source}" if isinstance(entry, ItemError) else entry.key


def _which(old: str, new: str) -> str:
    """The fields in which two identities differ."""
    pairs = zip(_FIELDS, json.loads(old), json.loads(new), strict=True)
    return f", its {' and '.join(name for name, was, now in pairs if was != now)}"
