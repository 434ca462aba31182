"""The local engine: worker processes on this machine, and the device.

On a CPU every worker does whole pieces, on one thread: no core waits for another, and pixels never
leave the process that decoded them. On a GPU workers read, decode and code, while a thread of this
process feeds the device; the slowest of the three is what the others wait for.
"""

import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import codec.autoencoder  # noqa: F401, for workers are forked off a process that has imported this
from codec.dataset.pieces import Encoded, Outcome, Piece, Prepared, Steps, Work
from codec.dataset.workers import Lost, Pool, WorkerError
from codec.shards.records import ItemError

PRELOAD = "codec.dataset.local"  # by it, workers start with torch and the codec imported
_MOST_DEATHS = 3  # of workers over one piece, before the job gives up


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(
    pieces: Iterator[Piece], work: Work, num_workers: int, *, apart: bool | None = None
) -> Generator[Outcome]:
    """Makes records of pieces, in any order, a bounded number of them at once.

    Args:
        pieces: In the order in which their outcomes are written.
        work: What to do.
        num_workers: Processes.
        apart: Encode in this process instead of in the workers; None where the device is no CPU.

    Raises:
        WorkerError: Workers die over a piece again and again.
    """
    if apart is None:
        apart = not work.model.device.startswith("cpu")
    with Pool(num_workers, Hands, (work, apart), PRELOAD) as pool:
        if not apart:
            yield from Schedule(pool, pieces, None).run()
            return
        with _Device(work) as device:
            yield from Schedule(pool, pieces, device).run()


class Hands:
    """What a worker does with a task."""

    def __init__(self, argument: tuple[Work, bool]) -> None:
        import torch

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # of libraries, about images: they would break the bar
        work, self._apart = argument
        self._steps = Steps(work)
        self._steps.load(encoder=not self._apart)
        self._start = {"start": time.process_time()}  # of this process, so since it was forked off

    def __call__(self, task: Any, note: Callable[[int], None]) -> Any:
        if isinstance(task, Encoded):
            return self._steps.pack(task)
        prepared = self._steps.prepare(task, note)
        prepared.times.add(self._start)
        self._start = {}
        if self._apart:
            return prepared
        return self._steps.pack(self._steps.encode(prepared, time.process_time))


class _Device:
    """A thread that runs the network on one prepared piece after another."""

    def __init__(self, work: Work) -> None:
        from multiprocessing import Pipe

        self._steps = Steps(work)
        self._waiting: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Encoded | BaseException] = queue.SimpleQueue()
        self.bell, self._rope = Pipe(duplex=False)  # so that one wait sees workers and this
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.num_held = 0

    def __enter__(self) -> "_Device":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        self.bell.close()
        self._rope.close()

    def submit(self, prepared: Prepared) -> None:
        self.num_held += 1
        self._waiting.put(prepared)

    def finished(self) -> Iterator[Encoded]:
        """Yields what has been encoded since the last call."""
        while self.bell.poll():
            self.bell.recv_bytes()
            result = self._done.get()
            if isinstance(result, BaseException):
                raise result
            self.num_held -= 1
            yield result

    def _run(self) -> None:
        while (prepared := self._waiting.get()) is not None:
            try:
                self._done.put(self._steps.encode(prepared, time.perf_counter))
            except BaseException as error:  # handed to the thread that waits for the result
                self._done.put(error)
            self._rope.send_bytes(b".")


class Schedule:
    """Which worker does what next: what is nearest to the shard first, and never too much."""

    def __init__(self, pool: Pool, pieces: Iterator[Piece], device: _Device | None) -> None:
        self._pool = pool
        self._pieces = pieces
        self._device = device
        self._again: list[Piece] = []  # pieces whose worker died
        self._encoded: list[Encoded] = []
        self._unfinished: set[int] = set()  # numbers of the pieces that have been begun
        self._newest = 0
        self._deaths: dict[tuple[int, int], int] = {}
        workers = pool.num_idle
        self._most_held = workers + 2  # prepared pieces that wait for the device
        self._window = 4 * workers + 16  # pieces from the oldest unfinished to the newest

    def run(self) -> Generator[Outcome]:
        self._fill()
        while self._unfinished:
            bells = [] if self._device is None else [self._device.bell]
            for event in self._pool.wait(*bells):
                if isinstance(event, Lost):
                    self._recover(event)
                elif isinstance(event.result, Outcome):
                    self._unfinished.remove(event.result.number)
                    self._fill()  # before the reader takes its time
                    yield event.result
                else:
                    assert self._device is not None
                    self._device.submit(event.result)
                self._fill()
            if self._device is not None:
                self._encoded.extend(self._device.finished())
            self._fill()

    def _fill(self) -> None:
        """Gives every idle worker a task, if there is one."""
        while self._pool.num_idle and (task := self._next()) is not None:
            self._pool.submit(task)

    def _next(self) -> Piece | Encoded | None:
        if self._encoded:
            return self._encoded.pop(0)
        if self._again:
            return self._again.pop()
        held = 0 if self._device is None else self._device.num_held + len(self._encoded)
        if self._device is not None and held + self._pool.num_busy >= self._most_held + 2:
            return None
        oldest = min(self._unfinished, default=self._newest)
        if self._newest - oldest >= self._window:
            return None
        piece = next(self._pieces, None)
        if piece is not None:
            self._newest = piece.number
            self._unfinished.add(piece.number)
        return piece

    def _recover(self, lost: Lost) -> None:
        """Does the task of a dead worker again; an image that kills a second one is an error."""
        task, part = lost.task, lost.part
        piece: Piece = task.piece if isinstance(task, Encoded) else task
        deaths = self._deaths[piece.number, part] = self._deaths.get((piece.number, part), 0) + 1
        if isinstance(task, Encoded):
            if deaths < _MOST_DEATHS:
                self._encoded.append(task)
                return
        elif part < 0:
            if deaths < _MOST_DEATHS:
                self._again.append(piece)
                return
        else:
            self._again.append(piece if deaths < 2 else _without(piece, part, _cause(lost.how)))
            return
        raise WorkerError(
            f"{deaths} worker processes died over the same images ({_cause(lost.how)}); if memory "
            "ran out, give fewer --workers or a smaller --batch-size"
        )


def _without(piece: Piece, position: int, cause: str) -> Piece:
    """The piece with one entry given up."""
    entry = piece.entries[position]
    reason = f"{entry.source} ends the process that decodes it ({cause}), two times"
    error = ItemError(entry.key, entry.source, reason)
    entries = (*piece.entries[:position], error, *piece.entries[position + 1 :])
    return replace(piece, entries=entries)


def _cause(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
