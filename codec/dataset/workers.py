"""Worker processes: each does one task at a time, and may be killed without harm.

Plain pipes join them to this process and nothing else does: a worker whose pipe closes ends, so
that none survives a SIGKILL of the job, and this process notices at once when a worker dies.
Arrays travel beside the pickle, without being copied into it.
"""

import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from codec.errors import LatentCodecError

_FAREWELL_SECONDS = 10.0  # that a worker gets to end by itself


class WorkerError(LatentCodecError):
    """A worker process died again and again."""


class Handler(Protocol):
    """What a worker does with its tasks."""

    def __call__(self, task: Any, note: Callable[[int], None]) -> Any:
        """Returns the result of a task; `note` says which part of it is being worked on."""


@dataclass(frozen=True, slots=True)
class Done:
    """A task that a worker has finished."""

    task: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """A task whose worker died.

    Attributes:
        task: What it was working on.
        part: What it noted last; -1 for nothing.
        how: The process's exit code: minus the signal for one that was killed.
    """

    task: Any
    part: int
    how: int


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    part: Any  # a shared whole number
    task: Any = None
    is_busy: bool = False


class Pool:
    """Processes that are started together, and again when one dies.

    Args:
        num_workers: How many.
        make_handler: Makes in each process what does the tasks; with `argument`, it is pickled.
        argument: What `make_handler` is given.
        preload: A module that is imported once for all processes.
    """

    def __init__(
        self, num_workers: int, make_handler: Callable[[Any], Handler], argument: Any, preload: str
    ) -> None:
        self._context = _context(preload)
        self._make_handler, self._argument = make_handler, argument
        self._workers = [self._start() for _ in range(num_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the processes: kindly, or at once after an error."""
        for worker in self._workers:
            worker.connection.close()
            if kind is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(_FAREWELL_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()

    @property
    def num_idle(self) -> int:
        """Workers without a task."""
        return sum(not worker.is_busy for worker in self._workers)

    @property
    def num_busy(self) -> int:
        """Workers with a task."""
        return len(self._workers) - self.num_idle

    def submit(self, task: Any) -> None:
        """Gives a task to a worker that has none; there must be one."""
        worker = next(worker for worker in self._workers if not worker.is_busy)
        worker.task, worker.is_busy, worker.part.value = task, True, -1
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: `wait` finds that out
            _send(worker.connection, task)

    def wait(self, *others: Connection) -> Iterator[Done | Lost]:
        """Waits until a task is done, a worker has died, or one of `others` has something to read.

        Raises:
            Exception: What a task raised, with the worker's traceback as a note.
        """
        busy = {worker.connection: worker for worker in self._workers if worker.is_busy}
        for ready in wait([*busy, *others]):
            if ready not in busy:
                continue
            worker = busy[ready]
            try:
                result = _receive(worker.connection)
            except (EOFError, OSError):
                yield self._replace(worker)
                continue
            task, worker.task, worker.is_busy = worker.task, None, False
            if isinstance(result, BaseException):
                raise result
            yield Done(task, result)

    def _replace(self, worker: _Worker) -> Lost:
        worker.process.join()
        lost = Lost(worker.task, worker.part.value, worker.process.exitcode or 0)
        worker.connection.close()
        worker.process.close()
        self._workers[self._workers.index(worker)] = self._start()
        return lost

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        part = self._context.RawValue("i", -1)
        process = self._context.Process(
            target=_serve, args=(theirs, part, self._make_handler, self._argument), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, part)


def warm_up(preload: str) -> None:
    """Begins to import what workers need, while this process does something else."""
    context = _context(preload)
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _context(preload: str) -> Any:
    """How processes are started: not by fork, for this process may have threads.

    A server forks the workers off instead, after one import of torch for all of them, which also
    shares its memory.
    """
    method = "forkserver" if sys.platform.startswith("linux") else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([preload])
    return context


def _serve(
    connection: Connection, part: Any, make_handler: Callable[[Any], Handler], argument: Any
) -> None:
    """A worker's life: does tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gives the tasks
    handler: Handler | None = None

    def note(number: int) -> None:
        part.value = number

    while True:
        try:
            task = _receive(connection)
        except (EOFError, OSError):
            return
        try:
            handler = handler or make_handler(argument)
            result = handler(task, note)
            note(-1)
        except BaseException as error:
            result = _portable(error)
        try:
            _send(connection, result)
        except OSError:
            return


def _portable(error: BaseException) -> BaseException:
    """An error that can be pickled, and tells where it came from."""
    import traceback

    error.add_note("in a worker process:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of any library; what cannot travel is told in words
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _send(connection: Connection, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    connection.send((data, [part.nbytes for part in raw]))
    for part in raw:
        if part.nbytes:
            connection.send_bytes(part)


def _receive(connection: Connection) -> Any:
    data, sizes = connection.recv()
    buffers = [np.empty(size, np.uint8) for size in sizes]
    for buffer in buffers:
        if buffer.nbytes:
            connection.recv_bytes_into(buffer)
    return pickle.loads(data, buffers=buffers)
