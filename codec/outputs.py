"""Output files that are either complete or absent, never half a file and never lost by accident."""

import os
import secrets
import tempfile
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


@contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` at the end; an error or Ctrl-C removes it.

    What is at `target` by then gives way as a whole; `refuse_existing_folder` says if it may.
    """
    path = Path(os.path.realpath(target))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part") as temporary:
        partial, earlier = Path(temporary) / "new", Path(temporary) / "old"
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # diffusers writes weights that only their owner may read
        if path.exists():
            path.rename(earlier)
        partial.rename(path)


def refuse_existing_folder(
    target: str | os.PathLike[str], *, force: bool, marker: str, what: str
) -> None:
    """Raises `FileExistsError` unless a folder may be written at `target`.

    Args:
        target: Where it is to be.
        force: Whether one that is there may give way. Only one with a file `marker`, or an empty
            one, ever does: a slip of the pen must not cost a folder of photographs.
        marker: See `force`.
        what: Names that kind of folder in the error.
    """
    path = Path(target)
    if not os.path.lexists(path):
        return
    is_ours = path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))
    if force and not is_ours:
        raise FileExistsError(
            f"{path} is there and is no {what}, so it is not overwritten; choose another folder"
        )
    if not force:
        raise FileExistsError(f"{path} exists already; give --force to overwrite it")


def _is_special(path: Path) -> bool:
    """Whether `path` is a device, pipe or socket, which a rename would destroy."""
    return path.exists() and not path.is_file() and not path.is_dir()
