"""Sorting more names than memory should hold: sorted runs on disk, merged as a stream."""

import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import IO

Row = tuple[str | int, ...]

_ROWS_IN_MEMORY = 20_000


def sort_stream(rows: Iterable[Row], rows_in_memory: int = _ROWS_IN_MEMORY) -> Iterator[Row]:
    """Yields rows in order; beyond `rows_in_memory` they wait in temporary files.

    Args:
        rows: Tuples of texts and whole numbers, comparable with one another.
        rows_in_memory: How many are sorted at once.
    """
    source = iter(rows)
    run = sorted(islice(source, rows_in_memory))
    if len(run) < rows_in_memory:
        yield from run
        return
    with ExitStack() as stack:
        runs = []
        while run:
            runs.append(stack.enter_context(_write_run(run)))
            run = sorted(islice(source, rows_in_memory))
        yield from heapq.merge(*(_read_run(stream) for stream in runs))


def _write_run(rows: list[Row]) -> IO[bytes]:
    stream = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    stream.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    stream.seek(0)
    return stream


def _read_run(stream: IO[bytes]) -> Iterator[Row]:
    for line in stream:
        yield tuple(json.loads(line))
