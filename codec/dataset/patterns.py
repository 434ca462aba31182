"""Paths that stand for several files: folders, `*` patterns, and WebDataset's `{000..127}`."""

import glob
import os
import re
from collections.abc import Iterator

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_IN_BRACES = 1_000_000


def expand(place: str, suffixes: tuple[str, ...]) -> tuple[str, list[str]]:
    """Returns the folder that names are relative to, and the files that a path stands for, sorted.

    Files that braces name need not exist, so that a missing one is not passed over.

    Args:
        place: A file, a folder that is searched through for `suffixes` (hidden names left out), or
            a pattern.
        suffixes: Lower-case endings.
    """
    if os.path.isdir(place):
        return os.path.abspath(place), list(_search(place, suffixes))
    if os.path.lexists(place):
        return os.path.dirname(os.path.abspath(place)), [os.path.abspath(place)]
    files = [
        os.path.abspath(path)
        for name in expand_braces(place)
        for path in (sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name])
    ]
    folders = {os.path.dirname(path) for path in files}
    return os.path.commonpath(folders) if folders else "", list(dict.fromkeys(files))


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that a pattern with `{a,b}` and `{000..127}` stands for."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    ends = _RANGE.fullmatch(found[1])
    parts = found[1].split(",")
    if ends:
        first, last = int(ends[1]), min(int(ends[2]), int(ends[1]) + _MOST_IN_BRACES)
        parts = [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
    elif len(parts) == 1:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [before + part + rest for rest in expand_braces(after) for part in parts]


def _search(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yields files below a folder by the order of their paths; links to folders are left alone."""
    root = os.path.abspath(folder)
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.join(path, name)
