"""Files that a process keeps open between one read and the next."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

_MOST_OPEN = 8

_Version = tuple[str, int, int]  # path, inode, time of change


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Closes it."""


Handle = TypeVar("Handle", bound=Closable)


class Handles(Generic[Handle]):
    """The files that were used last; a process that was forked opens its own.

    Args:
        open_file: Opens the file with a path.
    """

    def __init__(self, open_file: Callable[[str], Handle]) -> None:
        self._open_file = open_file
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._handles: OrderedDict[_Version, Handle] = OrderedDict()

    @contextmanager
    def use(self, path: str) -> Iterator[Handle]:
        """Gives the open file to one thread at a time; a file that was replaced is opened anew.

        Raises:
            OSError: The file is gone or cannot be opened.
        """
        if self._process != os.getpid():  # also a lock that another thread held at the fork
            self._start()
        status = os.stat(path)
        version = (path, status.st_ino, status.st_mtime_ns)
        with self._lock:
            if version not in self._handles:
                self._handles[version] = self._open_file(path)
                if len(self._handles) > _MOST_OPEN:
                    self._handles.popitem(last=False)[1].close()
            self._handles.move_to_end(version)
            yield self._handles[version]
