"""Output files that are either complete or absent, never half a file and never lost by accident."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def refuse_existing(target: str | os.PathLike[str], *, force: bool) -> None:
    """Raises `FileExistsError` when `target` is there already and `force` is not given."""
    if not force and os.path.lexists(target) and not _is_special(Path(target)):
        raise FileExistsError(f"{os.fspath(target)} exists already; give --force to overwrite it")


@contextmanager
def atomic_output(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens `target` for writing so that it is either complete or absent, never half a file.

    The bytes go to a temporary name in the same folder, which is made if missing, and move to the
    target at the end; an error or Ctrl-C removes them. A device or a pipe is written directly.
    """
    path = Path(os.path.realpath(target))
    if _is_special(path):
        with path.open("wb") as stream:
            yield stream
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        with temporary.open("xb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_special(path: Path) -> bool:
    """Whether `path` is a device, pipe or socket, which a rename would destroy."""
    return path.exists() and not path.is_file() and not path.is_dir()
