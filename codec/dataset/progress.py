"""How far a job is: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

_LINE_SECONDS = 30.0


@dataclass(slots=True)
class Progress:
    """Counts what is done and shows it. `advance` may be called by one thread at a time.

    Attributes:
        total: Source images of this run.
        title: What stands before it.
        is_shown: Whether anything is shown at all.
        done: Source images done.
        errors: How many gave no record, whole or in part, since the dataset was begun.
        num_bytes: Bytes of the pixels that were encoded.
    """

    total: int
    title: str = "encoding"
    is_shown: bool = True
    done: int = 0
    errors: int = 0
    num_bytes: int = 0
    _begin: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)
    _bar: Any = None
    _task: Any = None

    def __enter__(self) -> Self:
        if self.is_shown and sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task(
                self.title, total=self.total, rate="", errors=_errors(self.errors)
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.is_shown and kind is None and self.done:
            self._tell()

    def advance(self, images: int, num_bytes: int, errors: int) -> None:
        """Counts a piece that is done."""
        self.done += images
        self.num_bytes += num_bytes
        self.errors += errors
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.done, rate=self._rate(), errors=_errors(self.errors)
            )
        elif self.is_shown and time.monotonic() - self._told >= _LINE_SECONDS:
            self._tell()

    def line(self) -> str:
        """Returns where the job is, in one line."""
        share = 100 * self.done / max(self.total, 1)
        left = ""
        if 0 < self.done < self.total:
            seconds = (self.total - self.done) * self._elapsed() / self.done
            left = f", {_duration(seconds)} left"
        return (
            f"{self.title}: {self.done:,} of {self.total:,} images ({share:.0f} %), "
            f"{self._rate()}, {_errors(self.errors)}{left}"
        )

    def _tell(self) -> None:
        self._told = time.monotonic()
        print(self.line(), file=sys.stderr, flush=True)

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._begin, 1e-6)

    def _rate(self) -> str:
        seconds = self._elapsed()
        return f"{self.done / seconds:.1f} images/s, {self.num_bytes / seconds / 1e6:.1f} MB/s"


def _errors(count: int) -> str:
    return f"{count:,} error{'s' * (count != 1)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}, {task.fields[errors]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False, markup=False),
        redirect_stdout=False,
        transient=True,
    )
