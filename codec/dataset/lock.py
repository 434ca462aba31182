"""One job at a time on a dataset: a lock that ends with the process, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codec.errors import LatentCodecError

LOCK_FILE = ".lock"


class BusyError(LatentCodecError):
    """Another job works on the dataset."""


@contextmanager
def lock_dataset(directory: Path) -> Iterator[None]:
    """Holds the lock of a dataset; the system releases it where the process is killed.

    Raises:
        BusyError: Another process holds it.
        OSError: The folder cannot be written to.
    """
    path = directory / LOCK_FILE
    descriptor = _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is released, so that nobody takes a removed file
        os.close(descriptor)


def _take(path: Path) -> int:
    import fcntl  # here, for commands that need no lock are imported on systems without it

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise BusyError(
                f"{path.parent}: another job (process {holder or 'unknown'}) works on it; let that "
                "end, or give another folder"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one under its name, not one that its owner has removed."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
