"""Which keys were seen before, kept in a file instead of in memory."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


class KeyRegister:
    """The keys of a dataset, each once.

    One image may make several records, whose keys are its own and an ending ("@1", "@flip"). So a
    key also clashes with one that differs by such an ending.

    Args:
        path: A file to make; it is removed by `close`, or left where a process is killed, and a
            later register makes it anew.
        endings: What is appended to each key; "" among them.
    """

    def __init__(self, path: Path, endings: Sequence[str] = ("",)) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._endings = sorted(set(endings) - {""}, key=len, reverse=True)
        self._has_ended = False  # whether any key so far ends like a copy of another
        # No journal and no fsync: the file is of no use after a crash.
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA cache_size = -16384")  # KiB
        self._database.execute("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def __enter__(self) -> "KeyRegister":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def clash(self, key: str) -> str | None:
        """Registers a key, unless it clashes with an earlier one, which is returned."""
        for other in self._relatives(key):
            if self._has(other):
                return other
        cursor = self._database.execute("INSERT OR IGNORE INTO keys VALUES (?)", (key,))
        return None if cursor.rowcount else key

    def close(self) -> None:
        """Closes and removes the file."""
        self._database.close()
        self._path.unlink(missing_ok=True)

    def _relatives(self, key: str) -> list[str]:
        """Other keys whose records would be called like one of this key's."""
        if not self._endings:
            return []
        shorter = [key.removesuffix(ending) for ending in self._endings if key.endswith(ending)]
        longer = [key + ending for ending in self._endings] if self._has_ended else []
        self._has_ended |= bool(shorter)
        return shorter + longer

    def _has(self, key: str) -> bool:
        found = self._database.execute("SELECT 1 FROM keys WHERE key = ?", (key,))
        return found.fetchone() is not None
