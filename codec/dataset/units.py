"""Outcomes of pieces to committed shards, in order, beside everything else.

The process that runs the job is the only one that writes to the dataset, whatever the engine: a
worker that dies leaves nothing behind.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from codec.dataset.items import Item
from codec.dataset.pieces import Outcome, Piece, cut_unit
from codec.dataset.plan import read_unit
from codec.dataset.profile import StageTimes
from codec.shards.errors import ShardError
from codec.shards.forms import ShardForm
from codec.shards.records import ItemError
from codec.shards.writer import ShardWriter

_WAITING_OUTCOMES = 32


def iter_pieces(plan: Path, units: Iterable[int], piece_images: int) -> Iterator[Piece]:
    """Yields the pieces of units one after another, numbered from 0."""
    number = 0
    for unit in units:
        entries: list[Item | ItemError] = read_unit(plan, unit)
        for piece in cut_unit(unit, entries, piece_images, number):
            number += 1
            yield piece


def in_order(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yields outcomes by number, from 0; those that come too early wait."""
    waiting: dict[int, Outcome] = {}
    number = 0
    for outcome in outcomes:
        waiting[outcome.number] = outcome
        while number in waiting:
            yield waiting.pop(number)
            number += 1
    assert not waiting, "an outcome is missing"


@dataclass(slots=True)
class UnitWriter:
    """Writes shards from outcomes in order.

    Attributes:
        directory: The dataset.
        form: Of its shards.
        records_per_member: See `ShardWriter`.
        times: Core-seconds spent.
    """

    directory: Path
    form: ShardForm
    records_per_member: int
    times: StageTimes = field(default_factory=StageTimes)

    def write(
        self, outcomes: Iterable[Outcome], told: Callable[[Outcome, list[ItemError]], None]
    ) -> None:
        """Writes all units of `outcomes`.

        Args:
            outcomes: In the order of their numbers, whole units.
            told: Is given each outcome and its errors as soon as it is part of a shard.

        Raises:
            OSError: The disk is full, or does not take more; committed shards stay.
        """
        source = iter(outcomes)
        for first in source:
            errors: list[ItemError] = []
            with ShardWriter(
                self.directory, first.unit, self.form, records_per_member=self.records_per_member
            ) as writer:
                outcome = first
                while True:
                    with self.times.measure("write", time.thread_time):
                        new = self._add(writer, outcome)
                    errors += new
                    told(outcome, new)
                    if outcome.is_last:
                        break
                    outcome = next(source)
                with self.times.measure("write", time.thread_time):
                    writer.commit(errors)

    def _add(self, writer: ShardWriter, outcome: Outcome) -> list[ItemError]:
        """Adds records to the shard; returns the errors of the piece, with those of its records."""
        errors = list(outcome.errors)
        for info, data in outcome.records:
            try:
                writer.add(info, data)
            except ShardError as error:
                errors.append(ItemError(info.key, info.source, str(error)))
        return errors


class WriterThread:
    """Writes beside the caller, who waits only where too much is not yet written.

    Args:
        writer: What writes.
        told: As for `UnitWriter.write`; called in the thread.
    """

    def __init__(
        self, writer: UnitWriter, told: Callable[[Outcome, list[ItemError]], None]
    ) -> None:
        self._queue: queue.Queue[Outcome | None] = queue.Queue(_WAITING_OUTCOMES)
        self._writer, self._told = writer, told
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until all is written; after an error the open shard is given up.

        Raises:
            Exception: What writing raised.
        """
        self._is_cancelled = kind is not None
        if self._is_cancelled:
            with suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, outcome: Outcome) -> None:
        """Hands over an outcome.

        Raises:
            Exception: What writing raised before.
        """
        if self._error is not None:
            raise self._error
        self._queue.put(outcome)

    def _run(self) -> None:
        try:
            self._writer.write(in_order(self._received()), self._told)
        except BaseException as error:  # raised again in the thread that hands over
            self._error = error
            for _ in self._until_end():
                pass  # whoever waits in `put` goes on, and is told

    def _received(self) -> Iterator[Outcome]:
        yield from self._until_end()
        if self._is_cancelled:
            raise _CancelledError

    def _until_end(self) -> Iterator[Outcome]:
        """Yields what is handed over, unless the end was seen before."""
        while not self._has_ended:
            outcome = self._queue.get()
            if outcome is None:
                self._has_ended = True
            else:
                yield outcome


class _CancelledError(Exception):
    """The job ends before its last unit."""
