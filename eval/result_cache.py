"""Figures by what they were measured on, kept in a file so that a second run need not measure them.

Keys name content and settings, never paths or dates: a figure is found again as long as nothing
that it depends on has changed, and not otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from eval.file_codecs import digest

CACHE_FILE = "cache.jsonl"

Figures = Mapping[str, int | float | None]


class ResultCache:
    """Figures in a file of JSON lines, each written as soon as it is known.

    A run that is killed leaves at most its last line unfinished; that one is measured again.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; the folder is made if missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._entries: dict[str, Figures] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines():
            self._read(line)
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, *key: str) -> Figures | None:
        """Return the figures that were put there with this key, or None."""
        return self._entries.get(digest(*key))

    def put(self, figures: Figures, *key: str) -> None:
        """Keep figures, here and in the file."""
        name = digest(*key)
        self._entries[name] = figures
        line = json.dumps({"key": name, "figures": dict(figures)}, allow_nan=False)
        self._append(line.encode() + b"\n")

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as stream:
            stream.write(line)

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._entries[entry["key"]] = entry["figures"]
        except (ValueError, KeyError, TypeError):  # the line that a killed run did not finish
            return
