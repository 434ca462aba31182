"""Names of the files of a dataset, and how they are written so that nothing is ever half there."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from codec.shards.errors import ShardError
from codec.shards.forms import Container

MANIFEST_FILE = "manifest.json"
JOB_FILE = "job.json"
JOB_FOLDER = ".job"
ERRORS_FILE = "errors.jsonl"
MAX_SHARDS = 10**6

_TEMPORARY = ".tmp-"
_INDEX = re.compile(r"shard-(\d{6})\.index\.jsonl\.gz")


def shard_name(shard: int, container: Container) -> str:
    """Returns the file name of a shard."""
    return f"shard-{shard:06d}.{container.value}"


def index_name(shard: int) -> str:
    """Returns the file name of a shard's index, whose presence says that the shard is complete."""
    return f"shard-{shard:06d}.index.jsonl.gz"


def is_committed(directory: Path, shard: int) -> bool:
    """Whether a shard is complete."""
    return (directory / index_name(shard)).is_file()


def committed_shards(directory: Path) -> list[int]:
    """Returns the numbers of the shards that are complete, in order."""
    names = (_INDEX.fullmatch(entry.name) for entry in os.scandir(directory))
    return sorted(int(found[1]) for found in names if found)


def check_shard_number(shard: int) -> None:
    """Refuses more shards than names have digits for."""
    if not 0 <= shard < MAX_SHARDS:
        raise ShardError(
            f"found shard number {shard}, expected 0 to {MAX_SHARDS - 1}; put more images in each"
        )


def remove_leftovers(directory: Path) -> int:
    """Removes what killed writers left; call it while no writer runs. Returns how many files."""
    leftovers = [Path(e.path) for e in os.scandir(directory) if e.name.startswith(_TEMPORARY)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def temporary_path(target: Path) -> Path:
    """Returns a new hidden name beside a file that is to be written."""
    return target.parent / f"{_TEMPORARY}{target.name}-{secrets.token_hex(6)}"


@contextmanager
def durable_output(target: Path) -> Iterator[BinaryIO]:
    """Opens a file that is complete and on the disk, or absent, even when the machine stops.

    Raises:
        OSError: The disk is full, or does not take the file; then nothing is left.
    """
    temporary = temporary_path(target)
    stream = temporary.open("xb")
    try:
        yield stream
        publish(stream, temporary, target)
    except BaseException:
        discard(stream, temporary)
        raise


def publish(stream: BinaryIO, temporary: Path, target: Path) -> None:
    """Closes a temporary file and gives it its name, both safe on the disk when it returns."""
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
    os.replace(temporary, target)
    _sync_folder(target.parent)


def discard(stream: BinaryIO, temporary: Path) -> None:
    """Closes and removes a temporary file."""
    with suppress(OSError):  # closing writes what is buffered, which a full disk refuses again
        stream.close()
    temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; where folders cannot be opened, the system does it by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
