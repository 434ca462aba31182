"""Image files: what a folder tree, a list and a manifest have in common."""

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from codec.dataset.items import Item, UnreadableError
from codec.dataset.names import readable
from codec.dataset.sidecars import Description
from codec.shards.records import ItemError

MAX_FILE_BYTES = 2**30  # more than any picture of `codec.images.MAX_PIXELS` in 8 bits

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NOTHING = Description()


def file_item(
    path: str, source: str, described: Description = _NOTHING, key: str | None = None
) -> Item | ItemError:
    """Returns the item of one file, whose stamp is its size and its time of change.

    Args:
        path: Where it lies.
        source: What it is called; undecodable bytes in it are made readable.
        described: Its label and caption.
        key: Its name in the dataset, where that is not `source`.
    """
    source = readable(source)
    key = source if key is None else readable(key)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        return ItemError(key, source, unreadable(source, error))
    if not stat.S_ISREG(status.st_mode):
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        return ItemError(key, source, f"{source} is {found}: expected an image file")
    return Item(
        key,
        source,
        {"kind": "file", "path": os.path.abspath(path)},
        described.label,
        described.caption,
        f"{status.st_size}-{status.st_mtime_ns}",
    )


def read_file(locator: Mapping[str, Any], source: str) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        UnreadableError: It is missing, too large, or may not be read.
    """
    try:
        with open(locator["path"], "rb") as stream:
            check_size(os.fstat(stream.fileno()).st_size, source)
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise UnreadableError(unreadable(source, error)) from error


def check_size(num_bytes: int, source: str) -> None:
    """Refuses to read more than a picture can have.

    Raises:
        UnreadableError: It is more.
    """
    if num_bytes > MAX_FILE_BYTES:
        raise UnreadableError(
            f"{source} has {num_bytes:,} bytes: expected an image of at most {MAX_FILE_BYTES:,}"
        )


def unreadable(source: str, error: OSError | ValueError) -> str:
    """The sentence for a file that the operating system does not give."""
    if isinstance(error, FileNotFoundError):
        return f"{source} does not exist: expected an image file there"
    if isinstance(error, IsADirectoryError):
        return f"{source} is a folder: expected an image file"
    reason = getattr(error, "strerror", None) or error
    return f"{source} cannot be read ({reason}): check its permissions and the disk"


def is_remote(name: str) -> bool:
    """Whether a name is the address of something that would have to be downloaded."""
    return _URL.match(name) is not None


def remote_error(name: str) -> ItemError:
    """The error of an image that is named by an address."""
    name = readable(name)
    return ItemError(
        name, name, f"{name} is an address: expected a file, because nothing is downloaded"
    )
